"""A grid as CSV: plain numbers at full precision, one line per cell, row by row."""

from __future__ import annotations

import csv
import io

from fusionbench_lite.tables.cells.grid import MARKS, Cell, Grid
from fusionbench_lite.tables.cells.shown import for_its_scale

HEADER = (
    "row", "column", "statistic", "unit", "ours", "sd", "low", "high", "seeds", "published", "published_corrected", "difference",
    "marks", "family", "select", "record_keys",
)  # fmt: skip


def to_csv(grid: Grid) -> str:
    """The cells that the table has, omitted ones included, in the order of the grid.

    What is not there is empty; `marks` is one sign after the other; `record_keys` are separated by blanks.
    """
    grid = for_its_scale(grid)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    for row in grid.rows:
        for column in grid.columns:
            cell = grid.cells.get((row.name, column.name))
            if cell is not None:
                writer.writerow([row.name, column.name, *_fields(cell)])
    return buffer.getvalue()


def _fields(cell: Cell) -> list[str]:
    measured = (cell.ours, cell.sd, cell.low, cell.high)
    compared = (cell.published, cell.corrected, cell.difference)
    marks = "".join(mark for mark in MARKS if mark in cell.marks)
    return [
        cell.statistic, cell.unit or "", *map(_plain, measured), str(cell.seeds), *map(_plain, compared), marks, cell.family,
        cell.select, " ".join(cell.keys),
    ]  # fmt: skip


def _plain(value: float | None) -> str:
    return "" if value is None else repr(value)
