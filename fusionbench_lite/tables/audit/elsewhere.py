"""The same quantity printed differently elsewhere, in another table or another paper."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from fusionbench_lite.tables.audit.findings import Finding, severity_of
from fusionbench_lite.tables.audit.quantities import AVERAGES, by_quantity, named, points, slack
from fusionbench_lite.tables.published import Number

CHECK = "elsewhere"
UNITS = ("percent", "fraction", "normalized")
FACTOR = 3.0
"""Times of the same method on cards of one generation do not differ so much."""
_MINUTES = re.compile(r"\d+(\.\d+)?\s*(m|min|minutes)$")


def agree(a: Number, b: Number) -> bool:
    """Say whether two numbers can be one value: the same digits, or those of the finer one rounded to the coarser."""
    return abs(points(a) - points(b)) <= max(slack(a), slack(b)) + 1e-9


def check(those: Iterable[Number]) -> Iterator[Finding]:
    """Yield every number that is not the value which most papers, then most tables, print; all sides where none leads."""
    numbers = list(those)
    ablations = {_place(number): number for number in numbers if number.variant and number.column in AVERAGES}
    for same in by_quantity(number for number in numbers if number.unit in UNITS and number.metric != "accuracy_gain").values():
        for finding in _disagreements(same, agree):
            there = ablations.get(_place(finding.number))
            if there is not None and there not in same:
                text = f"{finding.reason} {there.table} has {there.written} with {there.variant}."
                finding = dataclasses.replace(finding, reason=text)
            yield finding
    times: dict[tuple[object, ...], list[Number]] = {}
    for number in numbers:
        if number.column in ("runtime_s", "tta_time_s"):
            times.setdefault((named(number), number.model, number.num_tasks), []).append(number)
    for same in times.values():
        for paper in {number.paper for number in same}:
            yield from _disagreements([number for number in same if number.paper == paper], same_time)
    adapted = [number for number in numbers if number.column in ("runtime_s", "tta_time_s") and number.model == "vit_b32"]
    for method in sorted({named(number)[0] for number in adapted}):
        yield from _far_times([number for number in adapted if named(number)[0] == method])


def _place(number: Number) -> tuple[object, ...]:
    """Return what an ablation of a method shares with the number that is its own."""
    return number.paper, number.method, number.model, number.num_tasks, number.column, number.metric, number.written


def same_time(a: Number, b: Number) -> bool:
    """Say whether two durations can be one, each cut or rounded to the finest unit it is printed in."""
    return abs(a.value - b.value) < max(_unit(a), _unit(b))


def _unit(number: Number) -> float:
    found = _MINUTES.search(number.value_as_printed)
    return 1.0 if found is None else 6.0 if found[1] else 60.0


def _far_times(same: Sequence[Number]) -> Iterator[Finding]:
    """Yield durations of a method that another paper has several times shorter or longer, the longest of each paper."""
    longest = {number.paper: number for number in sorted(same, key=lambda one: one.value)}
    for number in longest.values():
        other = min((one for one in longest.values() if one.paper != number.paper), key=lambda one: one.value, default=None)
        if other is not None and number.value >= FACTOR * other.value:
            yield Finding(
                check=CHECK, kind="cross_paper_disagreement", severity="medium", number=number, other=other.written,
                source=f"{other.paper} {other.table}",
                reason=f"{number.value / other.value:.1f} times the {other.value:.0f} s of {other.paper}: budgets or codes differ.",
            )  # fmt: skip


def _disagreements(same: Sequence[Number], agree: Callable[[Number, Number], bool]) -> Iterator[Finding]:
    weights = {number.key: _weight(number, same, agree) for number in same}
    best = max(weights.values())
    leading = [number for number in same if weights[number.key] == best]
    decided = all(agree(a, b) for a in leading for b in leading)
    for number in same:
        against = [other for other in (leading if decided else same) if not agree(number, other)]
        if against:
            yield _finding(number, against)


def _weight(number: Number, same: Sequence[Number], agree: Callable[[Number, Number], bool]) -> tuple[int, int]:
    agreeing = [other for other in same if agree(number, other)]
    return len({other.paper for other in agreeing}), len(agreeing)


def _finding(number: Number, against: Sequence[Number]) -> Finding:
    other = max(against, key=lambda one: abs(points(one) - points(number)))
    gap = abs(points(other) - points(number))
    where = "another table of the paper" if {one.paper for one in against} == {number.paper} else "another paper"
    difference = f"{gap:.0f} s" if number.unit == "seconds" else f"{gap:.2f} points"
    return Finding(
        check=CHECK, kind="cross_paper_disagreement", severity="medium" if number.unit == "seconds" else severity_of(gap),
        number=number, other=other.written,
        source="; ".join(dict.fromkeys(f"{one.paper} {one.table}" for one in against)),
        reason=f"The same quantity is {other.written} in {where} (difference {difference}).",
    )  # fmt: skip
