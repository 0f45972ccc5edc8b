"""Gains beside the differences that they are, and the range of gains under corruptions beside the table of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fusionbench_lite.tables.audit.findings import Finding, severity_of
from fusionbench_lite.tables.audit.quantities import corruption, points
from fusionbench_lite.tables.published import Number

CHECK = "gains"
ROUNDING = 0.051
"""Numbers of one decimal have a difference of one decimal."""
BOUND = ("pretrained", "individual", "traditional_mtl")
"""Rows that nothing gains over."""


def check(those: Iterable[Number]) -> Iterator[Finding]:
    """Yield gains that are no difference of their row and another, or not over the best one, and ranges that are another's."""
    numbers = list(those)
    averages = [number for number in numbers if number.column == "average"]
    for number in numbers:
        if number.column == "gain":
            beside = [one for one in averages if one.key[:5] == number.key[:5]]
            own = next(one for one in beside if (one.method, one.variant) == (number.method, number.variant))
            yield from _gain(number, own, [one for one in beside if one is not own and one.method not in BOUND])
        elif number.column == "gain_over_task_arithmetic":
            yield from _range(number, averages)


def _gain(number: Number, own: Number, others: Sequence[Number]) -> Iterator[Finding]:
    base = [one for one in others if one.method == own.method] if number.variant else []
    over = base or others
    exact = [one for one in over if abs(points(own) - points(one) - number.value) <= ROUNDING]
    if not exact:
        near = min(over, key=lambda one: abs(points(own) - points(one) - number.value))
        right = points(own) - points(near)
        yield Finding(
            check=CHECK, kind="implausible", severity=severity_of(abs(right - number.value)), number=number, other=f"{right:.1f}",
            likely=f"{right:.1f}", reason=f"{own.written} less the {near.written} of {near.method} is {right:.1f}.",
        )  # fmt: skip
        return
    best = max(over, key=points)
    if not base and points(best) < points(own) and best not in exact and len({one.method for one in exact}) == 1:
        right = points(own) - points(best)
        yield Finding(
            check=CHECK, kind="mislabelled", severity="low", number=number, other=f"{right:.1f}",
            reason=f"The gain is over {exact[0].method}, not over the best other row, {best.method} ({best.written}).",
        )  # fmt: skip


def _range(number: Number, averages: Sequence[Number]) -> Iterator[Finding]:
    """Yield an end of a range of gains that is not that of the table which has the gains one by one."""
    by_setting: dict[str, dict[str, float]] = {}
    for one in averages:
        if corruption(one) and one.setting != "corruption_clean":
            by_setting.setdefault(one.setting, {})[one.method] = points(one)
    gains = [there[number.method] - there["task_arithmetic"] for there in by_setting.values() if number.method in there]
    if not gains:
        return
    end = min(gains) if number.variant.startswith("smallest") else max(gains)
    if abs(end - number.value) > ROUNDING:
        source = next(one for one in averages if corruption(one))
        yield Finding(
            check=CHECK, kind="cross_paper_disagreement", severity="low", number=number, other=f"{end:.1f}",
            source=f"{source.paper} {source.table}",
            reason=f"The gains of {source.paper}'s {source.table} over the same corruptions end at {end:.1f}: another encoder.",
        )  # fmt: skip
