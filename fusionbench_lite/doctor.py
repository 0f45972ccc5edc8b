"""`python -m fusionbench_lite.doctor model=vit_b32 tasks=8 [KEY=VALUE ...]`: what a run needs, before it is started.

Takes the keys of `python -m fusionbench_lite`. Says what is missing and how long the run takes on this device, then task by task
which files and data sets it needs, their size and whether they are here; the memory and the arithmetic that the run will take,
and what a reader of its results should know. Nothing is downloaded; the hub is asked for the sizes of data sets that are not here.
Besides those keys:

    doctor.format=text      or json, which lists every file
    doctor.verbose=true     or --verbose: every file on a line of its own, with where it is or where to get it

Exit status: 0 where everything is here or will be downloaded by the run, 1 where something has to be fetched by hand, as
every download has where HF_HUB_OFFLINE is set, 2 for bad input.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.base.needs import Need, size_text
from fusionbench_lite.errors import InputError
from fusionbench_lite.fields import choice, flag
from fusionbench_lite.hub.reaching import reached
from fusionbench_lite.hub.settings import offline as hub_offline
from fusionbench_lite.paths import nearest_existing
from fusionbench_lite.planning.command_line import command
from fusionbench_lite.resources.findings import Findings, as_json, as_text

if TYPE_CHECKING:
    import torch

    from fusionbench_lite.planning.plan import Plan

USAGE = f"usage: python -m fusionbench_lite.doctor [KEY=VALUE ...]\n\n{__doc__}"
FORMATS = ("text", "json")
OFFLINE = "HF_HUB_OFFLINE is set, and so nothing is downloaded: unset it, or fill cache_dir on a machine with a network."


@dataclasses.dataclass(frozen=True)
class Options:
    """How the answer is printed."""

    format: str = choice("text", FORMATS)
    verbose: bool = flag(False)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status; see the module's text."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return command(USAGE, ["doctor.verbose=true" if one == "--verbose" else one for one in given], "doctor.", Options, _main)


def _main(plan: Plan, options: Options) -> int:
    findings = examine(plan)
    sys.stdout.write(as_json(findings) if options.format == "json" else as_text(findings, verbose=options.verbose))
    return 1 if findings.by_hand else 0


def examine(plan: Plan) -> Findings:
    """Return what a plan needs; nothing is downloaded."""
    from fusionbench_lite.base.devices import device_of

    wanted, kind = plan.wanted, plan.kind
    device = device_of(wanted.device)
    layout = f" ({wanted.layout})" if wanted.layout else ""
    title = f"{plan.method} on {plan.model}{layout}, {len(plan.tasks)} tasks, checkpoints={wanted.family}"
    is_offline = hub_offline()  # asked first: a hub that does not answer may do so when the run starts
    machine = _machine(device, wanted.cache)
    if kind.uses_hub:
        machine["hub"] = reached()
    needs = kind.needs(wanted, plan.training_examples)
    items, hints = list(needs.items), list(needs.hints)
    if is_offline:
        items = [item if item.made else dataclasses.replace(item, downloadable=False) for item in items]
        if any(not item.present and not item.made for item in items):
            hints.insert(0, OFFLINE)
    return Findings(
        title=title, machine=machine, items=items, time=_time(plan, items),
        estimate=_estimate(plan, device), caveats=list(needs.caveats), hints=hints,
    )


def _machine(device: torch.device, cache: Path) -> dict[str, str]:
    from fusionbench_lite.adaptation.engine import memory

    existing = nearest_existing(cache)
    writable = "" if os.access(existing, os.W_OK) else ", cannot be written: a run reads what is there"
    name = "processor"
    if device.type == "cuda":
        import torch

        name = torch.cuda.get_device_name(device)
    return {
        "device": f"{device}, {name}, {size_text(memory.total(device))}",
        "cache": f"{cache}, {size_text(shutil.disk_usage(existing).free)} free{writable}",
    }


def _estimate(plan: Plan, device: torch.device) -> list[str]:
    """Return the plan of memory and work in words; where nothing fits, what would."""
    from fusionbench_lite import resources
    from fusionbench_lite.resources import planned

    try:
        suggestion = planned.fitted(plan, device)
    except InputError as error:
        return [f"DOES NOT FIT: {error}"]
    return resources.lines(suggestion.estimate) if suggestion is not None else []


def _time(plan: Plan, items: list[Need]) -> list[str]:
    """Return how long the run takes on this device, with the rates it goes by; nothing where nothing is planned of its suite."""
    from fusionbench_lite.resources import work

    known = work.measured([plan], plan.wanted.cache)
    return list(work.time_lines(work.work([plan], known, needed=lambda _: items), known)) if known else []


if __name__ == "__main__":
    sys.exit(main())
