"""All checks in the order in which one needs what another found."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from fusionbench_lite.tables.audit import averages, copies, digits, displaced, elsewhere, fractions, gains, plausible, sizes
from fusionbench_lite.tables.audit.averages import Comparison
from fusionbench_lite.tables.audit.findings import Finding
from fusionbench_lite.tables.audit.quantities import every_number, in_points, points
from fusionbench_lite.tables.published import Number

Doubts = dict[tuple[str, ...], float | None]


@functools.cache
def findings() -> tuple[Finding, ...]:
    """Return everything that does not add up, in the order of the papers' numbers."""
    numbers = every_number()
    moved = list(displaced.check(numbers))
    away = {finding.number.key for finding in moved}
    copied, slips = list(copies.check(numbers)), list(digits.check(numbers))
    other = list(elsewhere.check(number for number in numbers if number.key not in away))
    doubts = _doubts(averages.comparisons(numbers), [*slips, *copied], other)
    found = [
        *moved, *slips, *copied, *averages.check((number for number in numbers if number.key not in away), doubts), *other,
        *gains.check(numbers), *sizes.check(numbers), *fractions.check(numbers), *plausible.check(numbers, doubts),
    ]  # fmt: skip
    place = {number.key: place for place, number in enumerate(numbers)}
    return tuple(sorted(_told_once(found, doubts), key=lambda one: place[one.number.key]))


def _doubts(compared: Iterable[Comparison], known: Sequence[Finding], other: Sequence[Finding]) -> Doubts:
    """Return the numbers that are doubted in rows whose averages fail, with what should stand there, in points.

    Copies and slips say so themselves. What other papers have instead counts where it gives the row an average that is printed, by
    the row itself or by them.
    """
    doubts: Doubts = {one.number.key: _points(one) for one in known if not one.row}
    differing = {one.number.key: one for one in other}
    for one in compared:
        if one.gap <= one.explained or any(number.key in doubts for number in one.row):
            continue
        doubted = [differing[number.key] for number in one.row if number.key in differing]
        worst = max(doubted, key=lambda finding: abs(_compared(finding) - points(finding.number)), default=None)
        if worst is not None and ";" in worst.source and worst.severity == "high":
            doubts[worst.number.key] = _compared(worst)
    return doubts


def _points(one: Finding) -> float | None:
    if one.likely is None:
        return None
    return points(dataclasses.replace(one.number, value=float(one.likely)))


def _compared(one: Finding) -> float:
    """Return what stands elsewhere, in points, whatever the unit there."""
    value = float(one.other)
    return 100 * value if value <= 1 < points(one.number) else value


def _told_once(found: Sequence[Finding], doubts: Doubts) -> Iterable[Finding]:
    """Yield the findings with the likely number that the first of them on the same number has, else the doubted row."""
    likely: dict[tuple[str, ...], str] = {}
    for one in found:
        if one.likely is not None:
            likely.setdefault(one.number.key, one.likely)
    for one in found:
        if (right := doubts.get(one.number.key)) is not None:
            likely.setdefault(one.number.key, in_points(right, one.number))
        yield one if one.row else dataclasses.replace(one, likely=likely.get(one.number.key))


def by_table(those: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Return findings by the name of their table."""
    found: dict[str, list[Finding]] = {}
    for one in those:
        found.setdefault(_name(one.number), []).append(one)
    return found


def _name(number: Number) -> str:
    return f"{number.paper}/{number.table}"
