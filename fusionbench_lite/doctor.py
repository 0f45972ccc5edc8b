"""`python -m fusionbench_lite.doctor model=vit_b32 tasks=8 [KEY=VALUE ...]`: what a run needs, before it is started.

Takes the keys of `python -m fusionbench_lite`. Lists every file and data set of the run with its size, whether it is here,
and where to get it; then the memory and the arithmetic that the run will take, and what a reader of its results should
know. Nothing is downloaded; the hub is asked for the sizes of data sets that are not here. Besides
those keys:

    doctor.format=text      or json

Exit status: 0 where everything is here or will be downloaded by the run, 1 where something has to be fetched by hand, 2
for bad input.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite import collect
from fusionbench_lite.commands import command
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.inventory import Item, size_text
from fusionbench_lite.paths import nearest_existing

if TYPE_CHECKING:
    import torch

    from fusionbench_lite.plan import Plan

USAGE = f"usage: python -m fusionbench_lite.doctor [KEY=VALUE ...]\n\n{__doc__}"
FORMATS = ("text", "json")
PATIENCE = 3.0
"""Seconds in which the hub has to take a connection."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How the answer is printed."""

    format: str = "text"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"unknown doctor.format {self.format!r}: {did_you_mean(self.format, FORMATS)}")


@dataclasses.dataclass(frozen=True)
class Findings:
    """The answer: a title, facts of the machine, what is needed, the plan of memory and work, and caveats."""

    title: str
    machine: dict[str, str]
    items: list[Item]
    estimate: list[str]
    caveats: list[str]

    @property
    def missing(self) -> list[Item]:
        """What is not here."""
        return [item for item in self.items if not item.present]

    @property
    def by_hand(self) -> list[Item]:
        """What is not here and is not downloaded by the run."""
        return [item for item in self.missing if not item.downloadable]

    @property
    def missing_bytes(self) -> int:
        """Bytes that are not here, of what has a known size."""
        return sum((item.nbytes or 0) - item.arrived for item in self.missing)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status; see the module's text."""
    return command(USAGE, arguments, "doctor.", Options, _main)


def _main(plan: Plan, options: Options) -> int:
    found = examine(plan)
    sys.stdout.write(_json(found) if options.format == "json" else _text(found))
    return 1 if found.by_hand else 0


def examine(plan: Plan) -> Findings:
    """Return what a plan needs; nothing is downloaded."""
    from fusionbench_lite.paths import cache_dir
    from fusionbench_lite.suite import device_of

    device, cache = device_of(plan.device), cache_dir(plan.cache_dir)
    layout = f" ({plan.backbone.layout})" if plan.backbone.layout else ""
    title = f"{plan.method} on {plan.model}{layout}, {len(plan.tasks.names)} tasks, checkpoints={plan.backbone.family}"
    items: list[Item] = []
    caveats: list[str] = []
    machine = _machine(device, cache)
    _existing("results_dir", plan.results_dir)
    if plan.backbone.is_clip:
        machine["hub"] = _hub()
        items, caveats = _published(plan)
    return Findings(title, machine, items, _estimate(plan, device, cache), caveats)


def _published(plan: Plan) -> tuple[list[Item], list[str]]:
    from fusionbench_lite import checkpoints, clip_suite
    from fusionbench_lite.checkpoints.families import caveats as of_experts
    from fusionbench_lite.checkpoints.families import check
    from fusionbench_lite.data import vision
    from fusionbench_lite.suite import wanted_of

    wanted = wanted_of(plan)
    request, sources = clip_suite.request_of(wanted), clip_suite.sources_of(wanted)
    items = [*checkpoints.inventory(request), *(item for task in wanted.tasks for item in vision.inventory(task, sources))]
    if not collect.reads_training(plan):
        items = [item for item in items if item.what != "training images"]
    variant = plan.backbone.variant
    published = [task for task in wanted.tasks if task in vision.names()]
    families = check(request.family, request.model, request.tasks, request.manifest)
    notes = (*of_experts(families), *(note for task in published for note in vision.caveats(task, variant)))
    return items, list(dict.fromkeys(notes))


def _machine(device: torch.device, cache: Path) -> dict[str, str]:
    from fusionbench_lite.adaptation.engine import memory

    existing = _existing("cache_dir", cache)
    writable = "" if os.access(existing, os.W_OK) else ", cannot be written: a run reads what is there"
    name = "processor"
    if device.type == "cuda":
        import torch

        name = torch.cuda.get_device_name(device)
    return {
        "device": f"{device}, {name}, {size_text(memory.total(device))}",
        "cache": f"{cache}, {size_text(shutil.disk_usage(existing).free)} free{writable}",
    }


def _existing(key: str, folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there. Raises InputError where a file is in its place."""
    found = nearest_existing(folder)
    if not found.is_dir():
        raise InputError(f"{key}={folder.absolute()}: {found} is no folder: choose another")
    return found


def _hub() -> str:
    """Return the hub of downloads and whether it answers; where it does not, the rest of the process goes without it."""
    from fusionbench_lite.hub.settings import current, origin

    now = current()
    if now.offline:
        return f"{now.endpoint}, not asked (HF_HUB_OFFLINE)"
    place = origin(now.endpoint)
    proxied = any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name, value in os.environ.items() if value)
    try:
        if place is not None and not (proxied and place[1] not in ("127.0.0.1", "localhost")):
            socket.create_connection(place[1:], timeout=PATIENCE).close()
    except OSError as error:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return f"{now.endpoint}, which does not answer ({error.strerror or error}): sizes of data sets are not known"
    return now.endpoint


def _estimate(plan: Plan, device: torch.device, cache: Path) -> list[str]:
    """Return the plan of memory and work in words; where nothing fits, what would."""
    from fusionbench_lite import footprint, memory_plan

    try:
        return memory_plan.lines(footprint.fitted(plan, device, cache / "scratch").estimate)
    except InputError as error:
        return [f"DOES NOT FIT: {error}"]


def _json(found: Findings) -> str:
    content: dict[str, Any] = dataclasses.asdict(found) | {
        "missing": len(found.missing), "missing_bytes": found.missing_bytes,
    }
    return json.dumps(content, indent=1) + "\n"


def _text(found: Findings) -> str:
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table

    buffer = io.StringIO()
    console = Console(file=buffer, width=Console().width if sys.stdout.isatty() else 160, color_system=None)
    console.print(found.title, highlight=False)
    for name, value in found.machine.items():
        console.print(f"  {name:8} {value}", highlight=False, soft_wrap=True)
    if found.items:
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("Needed", "Task", "Size", "Here", "Where"):
            grid.add_column(name, justify="right" if name == "Size" else "left", overflow="fold")
        for item in found.items:
            where = item.path if item.present else item.where
            grid.add_row(
                item.what, item.task or "all", size_text(item.nbytes), _here(item),
                f"{where} ({item.note})" if item.note else where,
            )
        console.print(grid)
        for line in _summary(found.missing, found.by_hand, found.missing_bytes):
            console.print(line, highlight=False, soft_wrap=True)
    for heading, lines in (("Memory and work", found.estimate), ("To know about the results", found.caveats)):
        if lines:
            console.print(f"\n{heading}", highlight=False)
            for line in lines:
                console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _here(item: Item) -> str:
    if item.present:
        return "yes"
    return f"{size_text(item.arrived)} of it" if item.arrived else "no"


def _summary(missing: Sequence[Item], by_hand: Sequence[Item], nbytes: int) -> list[str]:
    if not missing:
        return ["Everything is here."]
    unknown = sum(item.nbytes is None for item in missing)
    lines = [f"{len(missing)} missing, {size_text(nbytes)}" + (f" and {unknown} of unknown size" if unknown else "") + "."]
    if len(by_hand) < len(missing):
        lines.append("The run downloads what it can by itself.")
    lines += [f"By hand, to {item.path}: {item.what} of {item.task or 'all tasks'}: {item.where}" for item in by_hand]
    return lines


if __name__ == "__main__":
    sys.exit(main())
