"""All published tables on a page: how many cells records here answer, how many flags the audit has."""

from __future__ import annotations

from pathlib import Path

from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.experiments.runs import NOTES
from fusionbench_lite.tables import published


def listing(results_dir: Path, scale: str = "published") -> str:
    """Return a line per table: its name, title, cells answered by records here of all cells, flagged numbers."""
    folder = results_dir / NOTES
    there = {path.stem for path in folder.glob("*.json")} if folder.is_dir() else set()
    titles = {table.name: table for table in published.tables()}
    lines = []
    for name in experiments.names():
        specs = [
            spec for spec in experiments.cells(experiments.scaled(experiments.read(name), scale))
            if spec.omitted is None and spec.statistic.needs_run
        ]
        answered = sum(all(run.id in there for run in spec.all_runs) for spec in specs)
        numbers = published.numbers(*name.partition("/")[::2]) if name in titles else ()
        flagged = sum(bool(published.flags_of(number)) for number in numbers)
        title = titles[name].title if name in titles else experiments.read(name).title
        lines.append((name, title, f"{answered}/{len(specs)}", f"{flagged} flagged" if flagged else ""))
    widths = [max(len(line[place]) for line in lines) for place in (0, 2)]
    return "".join(f"{name:<{widths[0]}}  {count:>{widths[1]}}  {flags:>11}  {title}\n" for name, title, count, flags in lines)
