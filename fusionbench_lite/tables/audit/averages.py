"""Averages recomputed from the numbers of their rows, wherever the rows stand.

Two tolerances. A row's own average may differ from the mean of its printed numbers by half a unit of its last digit, and by half a
unit of theirs, since each was rounded before it was printed. An average that another table of the paper gives without its numbers
(AdaRank's tables 1 to 10 beside 11 to 18) is held against the mean of the row with the same models, method and tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fusionbench_lite.tables.audit.findings import Finding, severity_of
from fusionbench_lite.tables.audit.quantities import AVERAGES, corruption, in_points, named, points, rows, slack
from fusionbench_lite.tables.published import Number
from fusionbench_lite.tables.published.schema import TASKS

CHECK = "averages"
UNITS = ("percent", "fraction", "normalized")


class Comparison(NamedTuple):
    """An average and the numbers of the row it is of."""

    average: Number
    row: Sequence[Number]

    @property
    def mean(self) -> float:
        """The mean of the row in points."""
        return sum(points(number) for number in self.row) / len(self.row)

    @property
    def gap(self) -> float:
        """How far the average is from the mean, in points."""
        return abs(self.mean - points(self.average))

    @property
    def own(self) -> float:
        """What rounding the average alone explains."""
        return slack(self.average) + 1e-9

    @property
    def explained(self) -> float:
        """What rounding of average and numbers explains."""
        return slack(self.average) + max(slack(number) for number in self.row) + 1e-9


def comparisons(those: Iterable[Number]) -> list[Comparison]:
    """Return every average beside its row: that of its own line, else the first of the same checkpoints and method in the paper."""
    those = [number for number in those if number.unit in UNITS]
    own = {key: found for key, row in rows(those).items() if (found := [one for one in row if one.column in TASKS])}
    elsewhere: dict[tuple[object, ...], list[Number]] = {}
    for row in own.values():
        elsewhere.setdefault(_identity(row[0]), row)
    averages = [number for number in those if number.column in AVERAGES]
    return [
        Comparison(number, there) for number in averages
        if (there := own.get(number.key[:7]) or elsewhere.get(_identity(number)))
    ]  # fmt: skip


def _identity(number: Number) -> tuple[object, ...]:
    return number.paper, number.family, number.model, number.num_tasks, *named(number), corruption(number)


def check(those: Iterable[Number], doubtful: Mapping[tuple[str, ...], float | None] | None = None) -> Iterator[Finding]:
    """Yield the averages that are not those of their rows. `doubtful`: what should stand in place of numbers that other checks
    doubt, in points, None where nothing says so. An ablation may be another run: there the mean is likely only where the same
    wrong average stands beside the row too."""
    numbers = list(those)
    failed = [one for one in comparisons(numbers) if one.gap > one.explained]
    every = [row for line in rows(numbers).values() if (row := [one for one in line if one.column in TASKS])]
    beside: dict[tuple[object, ...], str | None] = {}
    later = []
    for one in failed:
        finding = _finding(one, doubtful or {}, every)
        if one.average.setting == one.row[0].setting:
            beside[one.row[0].key[:7], one.average.written] = finding.likely
            yield finding
        else:
            later.append((one, finding))
    for one, finding in later:
        yield dataclasses.replace(finding, likely=beside.get((one.row[0].key[:7], one.average.written)))


def _quoted(one: Comparison, others: Iterable[Sequence[Number]]) -> str | None:
    """Return the one or two rows of the same table whose mean the average is, nothing where there are none or more."""
    first = one.row[0]
    there = {row[0].key: row for row in others if row[0].key[:5] == first.key[:5] and row[0].key != first.key}
    same = [row[0].method for row in there.values() if Comparison(one.average, row).gap <= one.own]
    return " and of ".join(same) if len(same) < 3 else None


def _finding(one: Comparison, doubtful: Mapping[tuple[str, ...], float | None], others: Iterable[Sequence[Number]]) -> Finding:
    average, row = one.average, one.row
    mean = f"{one.mean / 100:.4f}" if average.unit == "fraction" else f"{one.mean:.2f}"
    likely: str | None = in_points(one.mean, average)
    reason = f"The {len(row)} numbers average {mean}."
    if quoted := _quoted(one, others):
        reason += f" {average.written} is the mean of {quoted}."
    wrong, fits = [number for number in row if number.key in doubtful], False
    if wrong:
        better = [doubtful.get(number.key, points(number)) for number in row]
        names = ", ".join(number.column for number in wrong)
        if None in better:
            likely = None
            reason += f" The row is the more doubtful: {names}."
        else:
            corrected = sum(value for value in better if value is not None) / len(row)
            fits = abs(corrected - points(average)) <= one.explained
            likely = None if fits else in_points(corrected, average)
            reason += f" With the likely {names} they average {in_points(corrected, average)}."
            if fits:
                reason += " The average is right, the row is not."
    source = "" if average.table == row[0].table else f"{row[0].paper} {row[0].table} ({row[0].method})"
    return Finding(
        check=CHECK, kind="average_mismatch", severity="low" if fits else severity_of(one.gap), number=average, other=mean,
        likely=likely, source=source, reason=reason,
    )  # fmt: skip
