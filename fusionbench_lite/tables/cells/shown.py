"""What every format shows of a grid: the texts of its cells, its heading, the legend and the remarks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
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
)  # fmt: skip
from fusionbench_lite.tables.cells.texts import Shown, column_texts

MEANINGS = {
    INSIDE: "published value inside our 95% interval, or equal where rounded",
    OUTSIDE: "published value outside it",
    FLAGGED: "published number flagged by the audit: its note is below, its likely right value in brackets",
    OTHER_FAMILY: "ours is from another checkpoint family",
    TEST_LABELS: "picked on test labels, on either side: optimistic",
    TRIAL: "trial on part of the test examples, not a result",
    NOT_RUN: "not run",
}


@dataclasses.dataclass(frozen=True)
class View:
    """A grid ready to be printed. `grid` shows nothing published where it is an embedded twin."""

    grid: Grid

    @functools.cached_property
    def cells(self) -> list[list[Shown]]:
        """The cells in the order of the grid, rows of columns."""
        columns = [column_texts([self.cell(row, column) for row in self.grid.rows]) for column in self.grid.columns]
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
        seeds = sorted({cell.seeds for cell in known if cell.sd is not None})
        span = "-".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) if seeds else ""
        parts = [f"mean ± standard deviation over {span} seeds" if seeds else ""]
        parts += ["[95% interval of the sampling of test examples]" if any(cell.low is not None for cell in known) else ""]
        ours = ", ".join(filter(None, parts))
        paper = "Paper: the published number, and ours minus it." if known and any(self.paired) else ""
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
    return dataclasses.replace(grid, cells={place: _unpublished(cell) for place, cell in grid.cells.items()})


def _unpublished(cell: Cell) -> Cell:
    marks = tuple(mark for mark in cell.marks if mark not in (INSIDE, OUTSIDE, FLAGGED))
    return dataclasses.replace(cell, published=None, printed=None, corrected=None, flags=(), difference=None, marks=marks)


def one_line(text: str) -> str:
    """Return text on one line, without characters that are not printed."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def runs(lines: Sequence[Line]) -> list[tuple[str, range]]:
    """Return the groups of neighbours: name and places."""
    groups = itertools.groupby(range(len(lines)), key=lambda place: lines[place].group)
    members = ((group, list(of)) for group, of in groups)
    return [(one_line(group), range(of[0], of[-1] + 1)) for group, of in members]


def _left_out(cell: Cell) -> tuple[str, ...]:
    return (cell.omitted,) if cell.omitted and cell.ours is None and cell.published is None else ()


def _notes(cell: Cell) -> tuple[str, ...]:
    return cell.flags
