"""The list of published tables: a line each, with how many of its cells records here answer."""

from __future__ import annotations

from pathlib import Path

from fusionbench_lite.tables.published.lines import PublishedTable
from fusionbench_lite.tables.published.reading import flags, tables


def text(results_dir: Path) -> str:
    """Return the list: name, cells answered by the records of a folder out of all, flags, title."""
    rows = []
    for table in tables():
        done, cells = answered(table, results_dir)
        rows.append((table.name, f"{done}/{cells}", str(len(flags(table.paper, table.table))), table.title))
    width = [max(len(row[column]) for row in rows) for column in range(3)]
    return "".join(
        f"{name:<{width[0]}}  {cells:>{width[1]}} cells  {flagged:>{width[2]}} flags  {title}\n"
        for name, cells, flagged, title in rows
    )


def answered(table: PublishedTable, results_dir: Path) -> tuple[int, int]:
    """Return how many cells of a table the records of a folder answer, and how many there are: its published numbers, of which
    no experiment answers any yet."""
    return 0, table.numbers
