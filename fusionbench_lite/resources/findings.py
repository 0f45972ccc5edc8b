"""What `doctor` finds, and how it is printed."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from fusionbench_lite.base.needs import Need, size_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """The answer: a title, facts of the machine, what is needed, the plan of memory and work, caveats, and what helps."""

    title: str
    machine: dict[str, str]
    items: list[Need]
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


def as_text(findings: Findings) -> str:
    """Return findings as a table with what is to be done below it."""
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table

    buffer = io.StringIO()
    width = Console().width if sys.stdout.isatty() else 160
    console = Console(file=buffer, width=width, color_system=None, markup=False, emoji=False)
    console.print(findings.title, highlight=False)
    for name, value in findings.machine.items():
        console.print(f"  {name:8} {value}", highlight=False, soft_wrap=True)
    if findings.items:
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("Needed", "Task", "Size", "Here", "Where"):
            grid.add_column(name, justify="right" if name == "Size" else "left", overflow="fold")
        for item in findings.items:
            where = item.path if item.present else item.where
            grid.add_row(
                item.what, item.task or "all", size_text(item.nbytes), _here(item),
                f"{where} ({item.note})" if item.note else where,
            )
        console.print(grid)
        for line in _summary(findings):
            console.print(line, highlight=False, soft_wrap=True)
    for heading, lines in (("Memory and work", findings.estimate), ("To know about the results", findings.caveats)):
        if lines:
            console.print(f"\n{heading}", highlight=False)
            for line in lines:
                console.print(f"  {line}", highlight=False, soft_wrap=True)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _here(item: Need) -> str:
    if item.present:
        return "yes"
    return f"{size_text(item.arrived)} of it" if item.arrived else "no"


def _summary(findings: Findings) -> list[str]:
    missing = findings.missing
    if not missing:
        return ["Everything is here."]
    unknown = sum(item.nbytes is None for item in missing)
    nbytes = size_text(findings.missing_bytes)
    lines = [f"{len(missing)} missing, {nbytes}" + (f" and {unknown} of unknown size" if unknown else "") + "."]
    if len(findings.by_hand) < len(missing):
        lines.append("The run downloads or makes what it can by itself.")
    for item in findings.by_hand:
        source = f": {item.where}" if item.where != item.path else ""
        lines.append(f"By hand, to {item.path}: {item.what} of {item.task or 'all tasks'}{source}")
    return lines + findings.hints
