"""What every format shows of a grid: the texts of its cells, who is best, the legend and the remarks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence

from fusionbench_lite.tables.cells.grid import (
    FLAGGED,
    INSIDE,
    MINI,
    NOT_RUN,
    OTHER_FAMILY,
    OUTSIDE,
    TEST_LABELS,
    TRIAL,
    Cell,
    Grid,
    Line,
)
from fusionbench_lite.tables.ranking import places

DECIMALS = {"percent": 1, "fraction": 4, "normalized": 1, "seconds": 1, "megabytes": 0, "count": 0}
"""The least decimals that a unit is printed with; a column that the paper prints with more has more."""
MOST_DECIMALS = 6
_PLAIN = re.compile(r"[+-]?(\d+|\d{1,3}(,\d{3})+)(\.(?P<decimals>\d+))?")
MEANINGS = {
    INSIDE: "difference inside the 95% interval",
    OUTSIDE: "difference outside the 95% interval",
    FLAGGED: "published number flagged by the audit: its note is below, its likely right value in brackets",
    OTHER_FAMILY: "ours is from another checkpoint family",
    TEST_LABELS: "picked on test labels, on either side: optimistic",
    TRIAL: "trial on part of the test examples, not a result",
    NOT_RUN: "not run",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A cell as texts, "" where there is none.

    `ours` is the number alone, `spread` its "± 0.2", `marks` what qualifies it; `published` is the number alone, `flag` what
    qualifies it and `corrected` the likely right value in brackets; `verdict` says on which side of the interval it lies.
    """

    ours: str = ""
    spread: str = ""
    interval: str = ""
    marks: str = ""
    published: str = ""
    flag: str = ""
    corrected: str = ""
    difference: str = ""
    verdict: str = ""
    rank: int = 0

    @property
    def tail(self) -> str:
        """What follows the number of ours."""
        return " ".join(filter(None, (self.spread, self.marks)))

    @property
    def beside(self) -> str:
        """What follows the published number."""
        return " ".join(filter(None, (self.flag, self.corrected)))

    @property
    def against(self) -> str:
        """The difference and its verdict."""
        return " ".join(filter(None, (self.difference, self.verdict)))

    @property
    def detailed(self) -> bool:
        """Whether a second line is needed."""
        return bool(self.interval or self.against)


@dataclasses.dataclass(frozen=True)
class View:
    """A grid ready to be printed. `grid` shows nothing published where it is an embedded twin."""

    grid: Grid

    @functools.cached_property
    def cells(self) -> list[list[Shown]]:
        """The cells in the order of the grid, rows of columns."""
        columns = [_column([self.cell(row, column) for row in self.grid.rows]) for column in self.grid.columns]
        return [[column[place] for column in columns] for place in range(len(self.grid.rows))]

    def cell(self, row: Line, column: Line) -> Cell | None:
        """The cell of a row and a column, None where the table has none."""
        return self.grid.cells.get((row.name, column.name))

    @functools.cached_property
    def paired(self) -> list[bool]:
        """Per column, whether anything published stands in it."""
        return [any(row[place].published for row in self.cells) for place in range(len(self.grid.columns))]

    @property
    def heading(self) -> str:
        """The experiment and its title; a twin and a trial say so."""
        known = [cell for cell in self.grid.cells.values() if cell.ours is not None]
        trial = "TRIAL: " if known and all(TRIAL in cell.marks for cell in known) else ""
        twin = ", embedded twin" if self.grid.scale == MINI else ""
        return one_line(f"{trial}{self.grid.experiment}{twin}: {self.grid.title}")

    def remarks(self, best: str = "") -> list[str]:
        """What stands below the table. `best`: how the format marks best and second, "" where it does not."""
        ranked = any(cell.rank for row in self.cells for cell in row)
        lines = [self._reading(), self._legend()]
        if best and ranked:
            lines.append(f"{best} of each column among comparable rows, by ours as printed.")
        lines += self.grid.notes
        lines += [f"{line.name}: {line.note}" for line in (*self.grid.rows, *self.grid.columns) if line.note]
        lines += [f"No cell for {names}: {reason}" for reason, names in self._gathered(_left_out)]
        lines += [f"{FLAGGED} {names}: {note}" for note, names in self._gathered(_notes)]
        return [one_line(line) for line in lines if line]

    def _reading(self) -> str:
        known = [cell for cell in self.grid.cells.values() if cell.ours is not None]
        if not known:
            return ""
        seeds = sorted({cell.seeds for cell in known if cell.sd is not None})
        span = "-".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) if seeds else ""
        parts = [f"mean ± standard deviation over {span} seeds" if seeds else ""]
        parts += ["[95% interval of the sampling of test examples]" if any(cell.low is not None for cell in known) else ""]
        ours = ", ".join(filter(None, parts))
        paper = "Paper: the published number, and ours minus it." if any(self.paired) else ""
        twin = "Embedded models and tasks: published numbers are no target here." if self.grid.scale == MINI else ""
        return " ".join(filter(None, (f"Ours: {ours}." if ours else "", paper, twin)))

    def _legend(self) -> str:
        shown = (cell for row in self.cells for cell in row)
        marks = {mark for cell in shown for mark in (cell.ours, *cell.marks, *cell.flag, *cell.verdict)}
        families = {cell.family for cell in self.grid.cells.values() if OTHER_FAMILY in cell.marks and cell.family}
        named = {OTHER_FAMILY: f" ({', '.join(sorted(families))})" if families else ""}
        return "; ".join(f"{mark} {meaning}{named.get(mark, '')}" for mark, meaning in MEANINGS.items() if mark in marks)

    def _gathered(self, notes: Callable[[Cell], Iterable[str]]) -> list[tuple[str, str]]:
        """Return each note with the cells that it is about, in the order of the cells."""
        about: dict[str, list[str]] = {}
        for row, column in itertools.product(self.grid.rows, self.grid.columns):
            cell = self.cell(row, column)
            for note in notes(cell) if cell else ():
                about.setdefault(note, []).append(f"{row.name} × {column.name}")
        return [(note, ", ".join(names)) for note, names in about.items()]


def view(grid: Grid) -> View:
    """Return a grid ready to be printed, without what is published where it is an embedded twin."""
    return View(for_its_scale(grid))


def for_its_scale(grid: Grid) -> Grid:
    """Return the grid; an embedded twin without published numbers and what is said of them, since they are no target of it."""
    if grid.scale != MINI:
        return grid
    nothing = {"published": None, "printed": None, "corrected": None, "flags": (), "difference": None}
    cells = {
        place: dataclasses.replace(cell, **nothing, marks=tuple(m for m in cell.marks if m not in (INSIDE, OUTSIDE, FLAGGED)))
        for place, cell in grid.cells.items()
    }
    return dataclasses.replace(grid, cells=cells)


def one_line(text: str) -> str:
    """Return text on one line, without characters that are not printed."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def runs(lines: Sequence[Line]) -> list[tuple[str, range]]:
    """Return the groups of neighbours: name and places."""
    groups = itertools.groupby(range(len(lines)), key=lambda place: lines[place].group)
    members = ((group, list(of)) for group, of in groups)
    return [(one_line(group), range(of[0], of[-1] + 1)) for group, of in members]


def decimals(cells: Iterable[Cell], unit: str | None) -> int:
    """Return the decimals of the cells of one unit in a column: the unit's least, or what the paper prints, if that is more."""
    of = [cell for cell in cells if cell.unit == unit]
    least = 2 if any(cell.statistic == "parameters:relative" for cell in of) else DECIMALS.get(unit or "", 1)
    return min(max([least, *(_printed_decimals(cell) for cell in of)]), MOST_DECIMALS)


def _printed_decimals(cell: Cell) -> int:
    if cell.published is None:
        return 0
    plain = _PLAIN.fullmatch(cell.printed or "")
    text = plain["decimals"] or "" if plain else f"{cell.published:.{MOST_DECIMALS}f}".rstrip("0").partition(".")[2]
    return len(text)


def _column(cells: Sequence[Cell | None]) -> list[Shown]:
    """Return the texts of a column, whose numbers of one unit have the same decimals."""
    there = [cell for cell in cells if cell is not None]
    digits = {unit: decimals(there, unit) for unit in {cell.unit for cell in there}}
    ranks = _ranks(cells, digits)
    return [Shown() if cell is None else _cell(cell, digits[cell.unit], rank) for cell, rank in zip(cells, ranks, strict=True)]


def _ranks(cells: Sequence[Cell | None], digits: dict[str | None, int]) -> list[int]:
    """Return the ranks of ours among comparable cells that say the same thing: one statistic, unit and direction."""
    ranks = [0] * len(cells)
    kinds = {(c.statistic, c.unit, c.higher) for c in cells if c is not None}
    for kind in kinds:
        values = [
            round(cell.ours, digits[cell.unit])
            if cell is not None and (cell.statistic, cell.unit, cell.higher) == kind and cell.comparable and cell.ours is not None
            else math.nan
            for cell in cells
        ]
        ranks = [rank or earlier for rank, earlier in zip(places(values, higher=kind[2]), ranks, strict=True)]
    return ranks


def _cell(cell: Cell, digits: int, rank: int) -> Shown:
    if cell.ours is None and cell.published is None and cell.omitted is not None:
        return Shown()
    own = [mark for mark in (OTHER_FAMILY, TEST_LABELS, TRIAL) if mark in cell.marks]
    theirs = [FLAGGED] if FLAGGED in cell.marks or cell.flags else []
    if cell.ours is None and TEST_LABELS in own and cell.published is not None:
        own.remove(TEST_LABELS)
        theirs.append(TEST_LABELS)
    return Shown(
        ours=_number(cell.ours, digits) or NOT_RUN,
        spread="" if cell.sd is None else f"± {_number(cell.sd, digits)}",
        interval="" if cell.low is None or cell.high is None else f"[{_number(cell.low, digits)}, {_number(cell.high, digits)}]",
        marks="".join(own),
        published=_published(cell, digits),
        flag="".join(theirs),
        corrected="" if cell.corrected is None else f"({_number(cell.corrected, digits)})",
        difference="" if cell.difference is None else f"{cell.difference:+z,.{digits}f}",
        verdict="".join(mark for mark in (INSIDE, OUTSIDE) if mark in cell.marks),
        rank=rank,
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:z,.{digits}f}"


def _left_out(cell: Cell) -> tuple[str, ...]:
    return (cell.omitted,) if cell.omitted and cell.ours is None and cell.published is None else ()


def _notes(cell: Cell) -> tuple[str, ...]:
    return cell.flags


def _published(cell: Cell, digits: int) -> str:
    """Return the number as the paper writes it, where that is a number in the unit of the cell."""
    printed = cell.printed or ""
    if cell.published is not None and _PLAIN.fullmatch(printed) and float(printed.replace(",", "")) == cell.published:
        return printed
    return _number(cell.published, digits)
