"""Values that methods hardly have: a merged model above the specialist of a task or far below the pretrained model, an average
above the specialists', fewer models worse than more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from fusionbench_lite.tables.audit.averages import comparisons
from fusionbench_lite.tables.audit.findings import Finding
from fusionbench_lite.tables.audit.quantities import AVERAGES, FIXED, corruption, named, points
from fusionbench_lite.tables.published import Number
from fusionbench_lite.tables.published.schema import TASKS

CHECK = "plausible"
ABOVE = 0.9995
"""Points above the specialist of a task, from which a number is doubted."""
BELOW = 20.0
"""Points below the pretrained model; entropy minimisation and large coefficients cost up to twelve."""
COLLAPSE = 0.5
"""Share of Task Arithmetic's accuracy below which an adapted model has collapsed."""
ADAPTED = ("adamerging", "adarank", "doge_am", "awd_am", "concrete_am")
FEWER = 5.0
"""Points by which fewer merged models do worse on a task than more, from which a row is doubted."""


def check(those: Iterable[Number], doubtful: Mapping[tuple[str, ...], float | None] | None = None) -> Iterator[Finding]:
    """Yield implausible numbers. A specialist that other checks doubt (`doubtful`) is what should stand in its place."""
    measured = [number for number in those if number.unit in ("percent", "fraction") and "gain" not in number.metric]
    beside: dict[str, dict[tuple[object, ...], Number]] = {method: {} for method in (*FIXED, "task_arithmetic")}
    for number in measured:
        if number.method in beside and not number.variant.startswith("+"):
            for place in _places(number):
                beside[number.method].setdefault(place, number)
    fits = {one.row[0].key[:7] for one in comparisons(measured) if one.gap <= one.explained}
    for number in measured:
        if number.method not in FIXED and (number.column in TASKS or number.column in AVERAGES):
            yield from _specialist(number, beside["individual"], doubtful or {})
            yield from _pretrained(number, beside["pretrained"], fits)
            yield from _collapsed(number, beside["task_arithmetic"])
    yield from _below_all(measured)
    yield from _with_less(measured)


def _places(number: Number) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Return where a number is looked for: in its own table, then in the paper."""
    tasks = None if number.column in TASKS else number.num_tasks
    return (
        (number.table, number.paper, number.model, number.num_tasks, number.column, number.metric, corruption(number)),
        (number.paper, number.model, tasks, number.column, number.metric, corruption(number)),
    )


def _beside(number: Number, those: Mapping[tuple[object, ...], Number]) -> Number | None:
    first, second = _places(number)
    return those.get(first) or those.get(second)


def _specialist(
    number: Number, specialists: Mapping[tuple[object, ...], Number], doubtful: Mapping[tuple[str, ...], float | None]
) -> Iterator[Finding]:
    own = _beside(number, specialists)
    if own is None or (limit := doubtful.get(own.key, points(own))) is None:
        return
    over = points(number) - limit
    if over >= ABOVE and number.column in TASKS:
        reason = f"{over:.1f} points above the specialist of that task ({own.written})."
    elif over > 0 and number.column in AVERAGES:
        reason = f"The average is above that of the specialists ({own.written})."
    else:
        return
    grave = "high" if over >= ABOVE and number.column in AVERAGES else "low"
    yield Finding(
        check=CHECK, kind="implausible", severity=grave, number=number, other=own.written, reason=reason,
        source=f"{own.paper} {own.table} (individual)",
    )  # fmt: skip


def _pretrained(number: Number, those: Mapping[tuple[object, ...], Number], fits: set[tuple[str, ...]]) -> Iterator[Finding]:
    own = _beside(number, those)
    if own is None or number.column not in TASKS or points(own) - points(number) < BELOW:
        return
    reason = f"{points(own) - points(number):.1f} points below the pretrained model ({own.written})."
    if number.key[:7] in fits:
        reason += " The row's average counts it: it is no slip of the print."
    yield Finding(
        check=CHECK, kind="implausible", severity="low", number=number, other=own.written, reason=reason,
        source=f"{own.paper} {own.table} (pretrained)",
    )  # fmt: skip


def _collapsed(number: Number, those: Mapping[tuple[object, ...], Number]) -> Iterator[Finding]:
    own = those.get(_places(number)[0])
    if own is None or number.column not in TASKS or number.metric != "accuracy" or not number.method.startswith(ADAPTED):
        return
    if points(number) < COLLAPSE * points(own):
        yield Finding(
            check=CHECK, kind="implausible", severity="low", number=number, other=own.written,
            reason=f"Less than half of Task Arithmetic's {own.written}: the adaptation collapsed.",
            source=f"{own.paper} {own.table} (task_arithmetic)",
        )  # fmt: skip


def _below_all(measured: Iterable[Number]) -> Iterator[Finding]:
    """Yield specialists below every other number of their column but the pretrained model's."""
    columns: dict[tuple[object, ...], list[Number]] = {}
    for number in measured:
        if number.column in TASKS and number.method != "pretrained":
            columns.setdefault(_places(number)[0], []).append(number)
    for column in columns.values():
        merged = [points(number) for number in column if number.method != "individual"]
        for number in column:
            if number.method == "individual" and merged and points(number) < min(merged) - ABOVE:
                yield Finding(
                    check=CHECK, kind="implausible", severity="high", number=number, other=f"{min(merged):.1f}",
                    reason=f"The specialist is below every merged model of the column, of which the lowest has {min(merged):.1f}.",
                )  # fmt: skip


def _with_less(measured: Iterable[Number]) -> Iterator[Finding]:
    """Yield what is worse though it should be easier: with adapters than without, and rows of fewer models than of more."""
    same: dict[tuple[object, ...], list[Number]] = {}
    for number in measured:
        if number.method not in FIXED and not corruption(number):
            same.setdefault((number.paper, named(number)[0], number.model, number.column, number.metric), []).append(number)
    worse: dict[tuple[str, ...], int] = {}
    for those in same.values():
        for number in those:
            bare = [one for one in those if one.table == number.table and one.variant == "w/o adapters"]
            if number.variant == "w/ adapters" and bare and points(bare[0]) - points(number) >= ABOVE:
                yield Finding(
                    check=CHECK, kind="implausible", severity="medium", number=number, other=bare[0].written,
                    reason=f"Adapters lower it from {bare[0].written}: the two rows are of different merged models.",
                )  # fmt: skip
            more = [one for one in those if (one.num_tasks or 0) > (number.num_tasks or 0) and not named(one)[1]]
            if number.column in TASKS and more and min(map(points, more)) - points(number) >= FEWER:
                worse[number.key[:7]] = worse.get(number.key[:7], 0) + 1
    for number in measured:
        if number.column == "average_seen" and (count := worse.get(number.key[:7], 0)) > 1:
            yield Finding(
                check=CHECK, kind="implausible", severity="medium", number=number, other="",
                reason=f"On {count} tasks {FEWER:.0f} points or more below the same method with more models: settings differ.",
            )  # fmt: skip
