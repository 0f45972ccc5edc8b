"""What `doctor` finds, and how it is printed."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from fusionbench_lite.base.needs import Need, size_text

if TYPE_CHECKING:
    from rich.table import Table


SHOWN = 4
"""Files to be brought by hand that are said where not all are asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """The answer: a title, facts of the machine, what is needed, how long it takes, the plan of memory and work, caveats, and what
    helps."""

    title: str
    machine: dict[str, str]
    items: list[Need]
    time: list[str]
    estimate: list[str]
    caveats: list[str]
    hints: list[str]

    @property
    def missing(self) -> list[Need]:
        """What is not here."""
        return [item for item in self.items if not item.present]

    @property
    def by_hand(self) -> list[Need]:
        """What is not here and is neither downloaded nor made by the run."""
        return [item for item in self.missing if not item.downloadable and not item.made]

    @property
    def missing_bytes(self) -> int:
        """Bytes that are not here, of what has a known size."""
        return sum((item.nbytes or 0) - item.arrived for item in self.missing)


def as_json(findings: Findings) -> str:
    """Return findings as JSON, with the number of missing items and their bytes."""
    content: dict[str, Any] = dataclasses.asdict(findings) | {
        "missing": len(findings.missing), "missing_bytes": findings.missing_bytes,
    }
    return json.dumps(content, indent=1) + "\n"


def as_text(findings: Findings, *, verbose: bool = False) -> str:
    """Return findings: what is missing in all and how long the run takes, then a line per task, with `verbose` one per file."""
    import io

    from rich.console import Console

    buffer = io.StringIO()
    width = Console().width if sys.stdout.isatty() else 160
    console = Console(file=buffer, width=width, color_system=None, markup=False, emoji=False)
    console.print(findings.title, highlight=False)
    for name, value in findings.machine.items():
        console.print(f"  {name:8} {value}", highlight=False, soft_wrap=True)
    lines = [*(_summary(findings, verbose=verbose) if findings.items else ()), *findings.time]
    for line in ["", *lines] if lines else ():
        console.print(line, highlight=False, soft_wrap=True)
    if findings.items:
        console.print(_grid(_files(findings.items) if verbose else _tasks(findings.items)))
    for heading, lines in (("Memory and work", findings.estimate), ("To know about the results", findings.caveats)):
        if lines:
            console.print(f"\n{heading}", highlight=False)
            for line in lines:
                console.print(f"  {line}", highlight=False, soft_wrap=True)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _grid(rows: list[dict[str, str]]) -> Table:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        grid.add_column(name, justify="right" if name in ("Size", "Missing") else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row.values())
    return grid


def _files(items: list[Need]) -> list[dict[str, str]]:
    """Return a row per file."""
    rows = []
    for item in items:
        where = item.path if item.present else item.where
        rows.append({
            "Needed": item.what, "Task": item.task or "all", "Size": size_text(item.nbytes), "Here": _here(item),
            "Where": f"{where} ({item.note})" if item.note else where,
        })
    return rows


def _tasks(items: list[Need]) -> list[dict[str, str]]:
    """Return a row per task: what it needs, the sizes of all of that and of what is missing, and what that is."""
    rows = []
    for task in dict.fromkeys(item.task for item in items):
        own = [item for item in items if item.task == task]
        missing = [item for item in own if not item.present]
        rows.append({
            "Task": task or "all", "Needed": _kinds(own), "Size": _bytes(own), "Missing": _bytes(missing, arrived=True),
            "Not here": ", ".join(filter(None, (_kinds(missing), _arrived(missing)))) or "-",
        })
    return rows


def _kinds(items: list[Need]) -> str:
    counts: dict[str, int] = {}
    for item in items:
        counts[item.what] = counts.get(item.what, 0) + 1
    return ", ".join(what if count == 1 else f"{count} {what}" for what, count in counts.items())


def _bytes(items: list[Need], *, arrived: bool = False) -> str:
    """Return the bytes of known sizes, with a + where there are others."""
    if not items:
        return "-"
    known = [item for item in items if item.nbytes is not None]
    if not known:
        return "?"
    total = sum((item.nbytes or 0) - (item.arrived if arrived else 0) for item in known)
    return size_text(total) + (" + ?" if len(known) < len(items) else "")


def _arrived(items: list[Need]) -> str:
    """Return what a stopped download has left."""
    nbytes = sum(item.arrived for item in items)
    return f"{size_text(nbytes)} of it here" if nbytes else ""


def _here(item: Need) -> str:
    if item.present:
        return "yes"
    return f"{size_text(item.arrived)} of it" if item.arrived else "no"


def _summary(findings: Findings, *, verbose: bool) -> list[str]:
    """Return what is missing in all, and what is to be brought by hand: of many files the first, which show where they go."""
    missing = findings.missing
    if not missing:
        return ["Everything is here."]
    unknown = sum(item.nbytes is None for item in missing)
    nbytes = size_text(findings.missing_bytes)
    lines = [f"{len(missing)} missing, {nbytes}" + (f" and {unknown} of unknown size" if unknown else "") + "."]
    if len(findings.by_hand) < len(missing):
        lines.append("The run downloads or makes what it can by itself.")
    by_hand = findings.by_hand if verbose else findings.by_hand[:SHOWN]
    for item in by_hand:
        source = f": {item.where}" if item.where != item.path else ""
        lines.append(f"By hand, to {item.path}: {item.what} of {item.task or 'all tasks'}{source}")
    if len(by_hand) < len(findings.by_hand):
        lines.append(f"and {len(findings.by_hand) - len(by_hand)} more by hand: --verbose lists every file")
    return lines + findings.hints
