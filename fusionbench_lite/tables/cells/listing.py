"""All published tables, a line each: how many cells records here answer, how many flags the audit has."""

from __future__ import annotations

from pathlib import Path

from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.experiments.runs import NOTES
from fusionbench_lite.tables import published


def text(results_dir: Path, scale: str = "published") -> str:
    """Return the list: name, title, cells that need runs answered by records here of all such cells, flags."""
    folder = results_dir / NOTES
    there = {path.stem for path in folder.glob("*.json")} if folder.is_dir() else set()
    rows = []
    for table in published.tables():
        specs = [
            spec for spec in experiments.cells(experiments.scaled(experiments.read(table.name), scale))
            if spec.omitted is None and spec.statistic.needs_run
        ]
        answered = sum(all(run.id in there for run in spec.all_runs) for spec in specs)
        flags = published.flags(table.paper, table.table)
        rows.append((table.name, table.title, f"{answered}/{len(specs)}", str(len(flags))))
    width = [max(len(row[place]) for row in rows) for place in range(4)]
    return "".join(
        f"{name:<{width[0]}}  {title:<{width[1]}}  {cells:>{width[2]}} cells  {flagged:>{width[3]}} flags\n"
        for name, title, cells, flagged in rows
    )
