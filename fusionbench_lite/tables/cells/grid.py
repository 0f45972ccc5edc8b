"""The grid of a published table as every format shows it: rows x columns of cells, ours beside the published number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusionbench_lite.errors import InputError

PUBLISHED, MINI = "published", "mini"
"""The scales of an experiment: the paper's own models and tasks, or its embedded twin."""

INSIDE, OUTSIDE, FLAGGED, OTHER_FAMILY, TEST_LABELS, TRIAL, NOT_RUN = MARKS = ("=", "≠", "⚑", "◇", "†", "…", "–")
"""What a cell may carry, in the order in which marks are printed."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row or a column. Neighbours of one `group` stand under one heading; "" is no group."""

    name: str
    group: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number of ours beside its published counterpart, in one unit; None where there is none.

    `unit` is percent, fraction, normalized, seconds, megabytes or count. `ours` is the mean and `sd` the sample standard
    deviation over `seeds` runs; `low` and `high` end the 95 % interval of the sampling of test examples. `printed` is the
    published number as the paper writes it, `corrected` the likely right value of a flagged one, `flags` the audit's notes on
    it. `keys` are the records of ours. `omitted` is the reason why the paper's table has no such cell. `comparable` says
    whether it competes for best and second of its column, `higher` whether higher is better.
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
    comparable: bool = True
    higher: bool = True


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table: `cells` maps (row name, column name) to its cell; a pair without one is empty, like an omitted cell.

    Raises InputError for two rows or two columns of one name, and for a cell of a row or column that is not there.
    """

    experiment: str
    title: str
    question: str = ""
    scale: str = PUBLISHED
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    cells: Mapping[tuple[str, str], Cell]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind, lines in (("rows", self.rows), ("columns", self.columns)):
            names = [line.name for line in lines]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise InputError(f"{self.experiment}: two {kind} are called '{twice}'; give each its own name")
        known = {(row.name, column.name) for row in self.rows for column in self.columns}
        stray = next((place for place in self.cells if place not in known), None)
        if stray is not None:
            raise InputError(f"{self.experiment}: a cell of row '{stray[0]}' and column '{stray[1]}', which the table lacks")
