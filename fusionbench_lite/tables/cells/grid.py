"""A published table beside ours, ready to be shown: rows, columns, and what every cell holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A row or a column: its name, the heading that it stands under, and a remark."""

    name: str
    group: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell. Numbers are in its `unit` (percent, fraction, normalized, seconds, megabytes, count), None where there is none.

    `ours` is the mean over `seeds`, `sd` their standard deviation, `low` and `high` the interval of the sampling of test examples;
    `published` and `printed` the paper's value and how it stands there, `corrected` the likely value of a flagged one, `flags` what
    the audit says. `omitted` is why the table has no such cell. `comparable`: whether it may be marked the best of its column.
    """

    statistic: str
    unit: str | None = None
    ours: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    published: float | None = None
    printed: str | None = None
    corrected: float | None = None
    flags: tuple[str, ...] = ()
    difference: float | None = None
    marks: tuple[str, ...] = ()
    family: str = ""
    select: str = ""
    keys: tuple[str, ...] = ()
    omitted: str | None = None
    comparable: bool = False
    higher: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """A table: `cells` by (row, column). `scale` is published, or mini for a twin on the embedded suites."""

    experiment: str
    title: str
    question: str
    scale: str
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    cells: Mapping[tuple[str, str], Cell]
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> list[Cell]:
        """Return the cells of a column, row by row."""
        return [self.cells[row.name, name] for row in self.rows]

    @property
    def is_answered(self) -> bool:
        """Whether a record answers any cell that needs one."""
        return any(cell.keys for cell in self.cells.values())
