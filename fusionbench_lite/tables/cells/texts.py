"""The numbers of a column as texts: with its decimals, as the paper prints them, and who is best."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

from fusionbench_lite.tables.cells.grid import FLAGGED, INSIDE, NOT_RUN, OTHER_FAMILY, OUTSIDE, TEST_LABELS, TRIAL, Cell
from fusionbench_lite.tables.ranking import places

DECIMALS = {"percent": 1, "fraction": 4, "normalized": 1, "seconds": 1, "megabytes": 0, "count": 0}
"""The least decimals that a unit is printed with; a column that the paper prints with more has more."""
MOST_DECIMALS = 6
_NUMBER = re.compile(r"(?<![\d.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


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


def decimals(cells: Iterable[Cell], unit: str | None) -> int:
    """Return the decimals of the cells of one unit in a column: the unit's least, or what the paper prints, if that is more."""
    of = [cell for cell in cells if cell.unit == unit]
    least = 2 if any(cell.statistic == "parameters:relative" for cell in of) else DECIMALS.get(unit or "", 1)
    return min(max([least, *(_printed_decimals(cell) for cell in of)]), MOST_DECIMALS)


def _printed_decimals(cell: Cell) -> int:
    return len(published_text(cell).partition(".")[2])


def published_text(cell: Cell) -> str:
    """Return the number with the digits that the paper prints; where it prints another one (2h 5m, 2.46B), with those it has."""
    if cell.published is None:
        return ""
    written = (number for number in _NUMBER.findall(cell.printed or "") if float(number.replace(",", "")) == cell.published)
    return next(written, None) or _shortest(cell.published)


def _shortest(value: float) -> str:
    text = f"{value:z,.{MOST_DECIMALS}f}"
    return text.rstrip("0").rstrip(".")


def column_texts(cells: Sequence[Cell | None]) -> list[Shown]:
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
        published=published_text(cell),
        flag="".join(theirs),
        corrected="" if cell.corrected is None else f"({_number(cell.corrected, _right_decimals(cell, digits))})",
        difference="" if cell.difference is None else f"{cell.difference:+z,.{digits}f}",
        verdict="".join(mark for mark in (INSIDE, OUTSIDE) if mark in cell.marks),
        rank=rank,
    )


def _right_decimals(cell: Cell, digits: int) -> int:
    """The likely right value is printed like the published number, with more decimals where it has them."""
    return min(digits, max(_printed_decimals(cell), len(_shortest(cell.corrected or 0.0).partition(".")[2])))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:z,.{digits}f}"
