"""Copied numbers: the same four or more side by side in two rows of different methods, at any place of each; and a number that
repeats its neighbour where the row's average says that it should not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fusionbench_lite.tables.audit.averages import comparisons
from fusionbench_lite.tables.audit.findings import Finding
from fusionbench_lite.tables.audit.quantities import by_quantity, in_points, named, points, quantity, rows
from fusionbench_lite.tables.published import Number
from fusionbench_lite.tables.published.schema import TASKS

CHECK = "copies"
LENGTH = 4
"""Three side by side occur once by chance: two methods of doGe's table 4 that hardly differ."""


def check(those: Iterable[Number]) -> Iterator[Finding]:
    """Yield what is copied from another row or from the cell beside it."""
    numbers = list(those)
    cells = (number for number in numbers if number.column in TASKS and number.unit in ("percent", "fraction"))
    found = [row for row in rows(cells).values() if len(row) >= LENGTH]
    runs: dict[tuple[str, ...], list[tuple[Sequence[Number], int]]] = {}
    for line in found:
        for start in range(len(line) - LENGTH + 1):
            runs.setdefault(tuple(one.written for one in line[start : start + LENGTH]), []).append((line, start))
    reported: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
    for places in runs.values():
        for one, (row, start) in enumerate(places):
            for other, there in places[:one]:
                pair = (other[0].key[:7], row[0].key[:7])
                if pair not in reported and (named(row[0]) != named(other[0]) or row[0].model != other[0].model):
                    reported.add(pair)
                    yield from _pair(other, there, row, start, numbers)
    yield from _neighbours(numbers)


def _pair(a: Sequence[Number], start: int, b: Sequence[Number], there: int, numbers: Sequence[Number]) -> Iterator[Finding]:
    """Yield the copy of two rows that have a run in common: all of a row that has a variant, else the run where it fits worse."""
    length = LENGTH
    while start + length < len(a) and there + length < len(b) and a[start + length].written == b[there + length].written:
        length += 1
    if length == len(a) == len(b):
        copy, original = (b, a) if b[0].variant else (a, b)
        reason = f"All {length} numbers are those of {original[0].method_as_printed}: one of the two rows is not its own run."
        yield Finding(
            check=CHECK, kind="duplicate_row", severity="medium", number=copy[0], other=original[0].method,
            source=f"{original[0].paper} {original[0].table} ({original[0].method})", reason=reason, row=True,
        )  # fmt: skip
        return
    wrong = {tuple(one.row[0].key[:7]) for one in comparisons(numbers) if one.gap > one.explained}
    first, second = (a, start), (b, there)
    (copy, place), (original, source) = (first, second) if a[0].key[:7] in wrong else (second, first)
    for number, same in zip(copy[place : place + length], original[source : source + length], strict=True):
        reason = f"{length} numbers side by side are those of {same.method} (here its {same.column}); the average is not theirs."
        yield Finding(
            check=CHECK, kind="duplicate_row", severity="high", number=number, other=same.written, reason=reason,
            source=f"{same.paper} {same.table} ({same.method}, {same.column})",
        )  # fmt: skip


def _neighbours(numbers: Sequence[Number]) -> Iterator[Finding]:
    """Yield a number that equals the one before it where another value alone gives its row the printed average, and likewise
    wherever the same quantity stands."""
    everywhere = by_quantity(numbers)
    told: set[tuple[str, ...]] = set()
    for one in comparisons(numbers):
        if one.gap <= one.explained:
            continue
        for before, number in zip(one.row, one.row[1:], strict=False):
            needed = points(number) + len(one.row) * (points(one.average) - one.mean)
            if before.written != number.written or not points(number) < needed <= 100:
                continue
            likely = in_points(needed, number)
            for same in everywhere[quantity(number)]:
                if same.written == number.written and same.key not in told:
                    told.add(same.key)
                    yield Finding(
                        check=CHECK, kind="implausible", severity="medium", number=same, other=likely, likely=likely,
                        reason=f"{number.column} repeats the {before.column} beside it; {likely} gives the printed average "
                        f"{one.average.written} of {one.average.paper} {one.average.table}.",
                    )  # fmt: skip
