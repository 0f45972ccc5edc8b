"""A grid as words: what every cell, mark, legend and footnote says, in whatever format."""

from __future__ import annotations

from collections.abc import Iterator

from fusionbench_lite.tables.cells.grid import Cell, Grid, Line
from fusionbench_lite.tables.render import BEST, SECOND

NONE = "–"
MARKS = {
    "=": "the published value lies in our interval",
    "≠": "it lies outside",
    "⚑": "the audit flags the published value; the likely one stands in brackets",
    "◇": "ours is of another family of checkpoints",
    "†": "picked on test labels, on either side",
    "…": "a trial on some of the examples",
    "–": "not run",
}
_DIGITS = {"percent": 1, "fraction": 4, "normalized": 2, "seconds": 1, "megabytes": 0, "count": 0}


def heading(grid: Grid) -> str:
    """The title, with what a twin is."""
    return f"Embedded twin of: {grid.title}" if grid.scale == "mini" else grid.title


def digits(grid: Grid, column: str) -> int:
    """The decimals of a column: those of its unit, more where the paper prints more."""
    cells = grid.column(column)
    usual = max((_DIGITS.get(cell.unit or "percent", 1) for cell in cells), default=1)
    if any(cell.unit in ("count", "megabytes") for cell in cells):
        return usual
    printed = [len(repr(cell.published).partition(".")[2]) for cell in cells if cell.published is not None and cell.published % 1]
    return max([usual, *printed])


def number(value: float, decimals: int, *, sign: bool = False) -> str:
    """A number as tables print it."""
    return f"{value:{'+' if sign else ''},.{decimals}f}"


def ours(cell: Cell, decimals: int) -> str:
    """Our side: the mean, its deviation over seeds, the interval; "–" where there is none."""
    if cell.ours is None:
        return NONE if cell.omitted is None else ""
    text = number(cell.ours, decimals)
    if cell.sd is not None:
        text += f" ± {number(cell.sd, decimals)}"
    if cell.low is not None and cell.high is not None:
        text += f" [{number(cell.low, decimals)}, {number(cell.high, decimals)}]"
    return text


def theirs(cell: Cell, decimals: int) -> str:
    """The published side: the value, the likely one, the difference and the marks."""
    parts = []
    if cell.published is not None:
        parts.append(number(cell.published, decimals))
        if cell.corrected is not None:
            parts.append(f"({number(cell.corrected, decimals)})")
    if cell.difference is not None:
        parts.append(number(cell.difference, decimals, sign=True))
    marks = "".join(mark for mark in cell.marks if mark != NONE)
    return " ".join([*parts, *([marks] if marks else [])])


def lines(cell: Cell, decimals: int) -> list[str]:
    """A cell as one line, or as two where both sides have something to say."""
    mine, other = ours(cell, decimals), theirs(cell, decimals)
    if cell.ours is None:
        return [f"{mine} {other}".strip()]
    return [mine, other] if other else [mine]


def ranks(grid: Grid, column: str) -> list[int]:
    """Per row of a column: BEST, SECOND or 0, by our numbers as printed, among rows that compare."""
    cells, decimals = grid.column(column), digits(grid, column)
    values = [round(cell.ours, decimals) if cell.ours is not None and cell.comparable else None for cell in cells]
    known = sorted({value for value in values if value is not None}, reverse=any(cell.higher for cell in cells))
    if sum(value is not None for value in values) < 2:
        return [0] * len(cells)
    places = dict(zip(known, (BEST, SECOND), strict=False))
    return [places.get(value, 0) if value is not None else 0 for value in values]


def groups(entries: tuple[Line, ...]) -> list[tuple[str, list[Line]]]:
    """Rows or columns that stand under one heading, in order; those without one under ""."""
    found: list[tuple[str, list[Line]]] = []
    for line in entries:
        if not found or found[-1][0] != line.group:
            found.append((line.group, []))
        found[-1][1].append(line)
    return found


def remarks(grid: Grid) -> list[str]:
    """What stands below: how to read a cell, the marks that occur, the notes of rows and table, what the audit says."""
    there = {mark for cell in grid.cells.values() for mark in cell.marks}
    legend = "; ".join(f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in there)
    answered = any(cell.ours is not None for cell in grid.cells.values())
    said = []
    if answered:
        said.append("Ours: mean ± standard deviation over seeds [95% interval of the sampling of test examples].")
    if grid.scale == "published":
        below = "Below it the published value and the difference" if answered else "The published value"
        said.append(f"{below}. {legend}.")
    elif legend:
        said.append(f"{legend}.")
    if not answered and grid.scale == "mini":
        said.append(f"No record answers a cell here: run python -m fusionbench_lite experiment={grid.experiment} scale=mini")
    said += [f"{line.name}: {line.note}" for line in (*grid.rows, *grid.columns) if line.note]
    return [*said, *grid.notes, *_flags(grid)]


def _flags(grid: Grid) -> Iterator[str]:
    """Yield what the audit says, cells of one remark together."""
    by_note: dict[str, list[str]] = {}
    for (row, column), cell in grid.cells.items():
        for note in cell.flags:
            by_note.setdefault(note, []).append(f"{row}, {column}")
    for note, places in by_note.items():
        shown = "; ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        yield f"⚑ {shown}: {note}"
