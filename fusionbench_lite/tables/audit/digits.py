"""Slips of one digit: a number of a row with the wrong average that one other digit makes right.

With eight numbers of one decimal the average leaves half a point of room, in which one digit of almost every number finds a
place. So a slip is told only where the new number is what another table has for the same quantity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from fusionbench_lite.tables.audit.averages import Comparison, comparisons
from fusionbench_lite.tables.audit.elsewhere import agree
from fusionbench_lite.tables.audit.findings import Finding
from fusionbench_lite.tables.audit.quantities import by_quantity, points, quantity
from fusionbench_lite.tables.published import Number

CHECK = "digits"


def slips(one: Comparison) -> Iterator[tuple[Number, str]]:
    """Yield each number of a row with the text that differs in one digit and gives the printed average."""
    scale = 100 if one.average.unit == "fraction" else 1
    missing, room = len(one.row) * (points(one.average) - one.mean), len(one.row) * one.explained
    for number in one.row:
        needed = points(number) + missing
        for place, digit in enumerate(number.written):
            if not digit.isdigit():
                continue
            for other in "0123456789":
                text = number.written[:place] + other + number.written[place + 1 :]
                if other != digit and abs(scale * float(text) - needed) <= room:
                    yield number, text


def check(those: Iterable[Number]) -> Iterator[Finding]:
    """Yield the numbers that one other digit makes those of other tables, and their row that of its average."""
    numbers = list(those)
    everywhere = by_quantity(numbers)
    told = set()
    for one in comparisons(numbers):
        if one.gap <= one.explained:
            continue
        found = list(slips(one))
        cells = len({number.key for number, _ in found})
        for number, text in found:
            right = dataclasses.replace(number, value=float(text), written=text)
            witnesses = [other for other in everywhere[quantity(number)] if not agree(other, number) and agree(other, right)]
            if witnesses and number.key not in told:
                told.add(number.key)
                yield Finding(
                    check=CHECK, kind="implausible", severity="high", number=number, other=text, likely=text,
                    source="; ".join(f"{other.paper} {other.table}" for other in witnesses),
                    reason=f"With one other digit, {text}, it is the {witnesses[0].written} printed elsewhere and the row has its "
                    f"average {one.average.written}; by the average alone {cells} of {len(one.row)} numbers could have a slip.",
                )  # fmt: skip
