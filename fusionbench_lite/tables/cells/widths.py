"""How wide the parts of a column are, in characters: text prints by it, LaTeX breaks tables by it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from fusionbench_lite.tables.cells.shown import View, one_line

OURS, PAPER = "ours", "paper"
INSIDE = 2
"""Blanks between ours and the paper's number."""
_LEAST_NAMES, _WIDEST_WORD = 18, 16
_CONSOLE = Console(file=io.StringIO())


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The widths of a column's parts: numbers and what follows them, for ours and the paper's (0 without one), and the whole."""

    number: int
    ours: int
    published: int
    paper: int
    whole: int


def column_widths(shown: View, place: int, second: float = 1.0) -> Widths:
    """Return the widths of the column at this place; its header is wrapped to them, at its longest word if need be.

    `second`: the size of letters of the second lines, intervals and differences, to that of the first.
    """
    cells = [row[place] for row in shown.cells]

    def most(texts: Sequence[str]) -> int:
        return max(map(cell_len, texts), default=0)

    def smaller(texts: Sequence[str]) -> int:
        return math.ceil(second * most(texts))

    number, tail = most([cell.ours for cell in cells]), most([cell.tail for cell in cells])
    paired = shown.paired[place]
    ours = max(number + bool(tail) + tail, smaller([cell.interval for cell in cells]), len(OURS) if paired else 0)
    published, beside = most([cell.published for cell in cells]), most([cell.beside for cell in cells])
    paper = max(published + bool(beside) + beside, smaller([cell.against for cell in cells]), len(PAPER)) if paired else 0
    header = min(most(one_line(shown.grid.columns[place].name).split()), _WIDEST_WORD)
    whole = max(ours + (INSIDE + paper if paired else 0), header, 1)
    return Widths(number=number, ours=ours, published=published, paper=paper, whole=whole)


def name_width(shown: View, width: int) -> int:
    """Return the width of the names of rows, a third of a line or less; rows of a group are indented by two."""
    longest = max((cell_len(one_line(row.name)) + 2 * bool(row.group) for row in shown.grid.rows), default=0)
    return min(longest, max(_LEAST_NAMES, width // 3))


def wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text, broken at blanks and within words that are longer than the width."""
    lines = Text(one_line(text)).wrap(_CONSOLE, max(width, 2), overflow="fold")
    return [line.plain.rstrip() for line in lines] or [""]
