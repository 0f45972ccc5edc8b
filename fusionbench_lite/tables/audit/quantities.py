"""Which published numbers are the same quantity: the same models merged by the same method and measured on the same examples.

The papers give one thing several names (Consensus Merging is Consensus TA, the default row of an ablation is the method itself)
and one name several things ("Surgery" starts from Task Arithmetic in doGe and from AdaMerging in MetaMerging). Accuracy and
Matthews' correlation are never the same; a pretrained model and a specialist have one accuracy on a task however many models are
merged beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fusionbench_lite.tables.published import Number, numbers, tables

FIXED = ("pretrained", "individual")
"""Methods whose accuracy on a task does not depend on the others."""
AVERAGES = ("average", "average_seen", "average_unseen")
_METHODS = {"consensus_merging": "consensus_ta", "adamerging": "adamerging_layerwise"}
_SURGERY = {"doge": "task_arithmetic", "metamerging": "adamerging_layerwise"}
_DEFAULTS = frozenset(
    {
        "orthogonal to shared subspace (default)", "global_scale=0.07", "alpha=0.1", "beta=0.01", "inner_steps=1", "data=0%",
        "data=100%", "full range", "lambda=fixed; mask=fixed", "lambda=learned; mask=fixed", "lambda=learned; mask=learned",
    }
)  # fmt: skip
"""Variants that are the method as every other table has it."""


class Quantity(NamedTuple):
    """What a number is of. `setting` is a corruption, else empty."""

    model: str
    tasks: int | None
    method: str
    variant: str
    column: str
    metric: str
    setting: str


def every_number() -> tuple[Number, ...]:
    """Return all published numbers in the order of the papers."""
    return tuple(number for table in tables() for number in numbers(table.paper, table.table))


def named(number: Number) -> tuple[str, str]:
    """Return method and variant by the name that every other table has for them."""
    method, variant = _METHODS.get(number.method, number.method), number.variant
    if method == "surgery":
        return _SURGERY[number.paper], "+surgery"
    if variant in _DEFAULTS or (variant == "w/o adapters" and method != "metamerging"):
        return method, ""
    if variant == "extra training 0 min":
        return "task_arithmetic", ""
    if variant == "top-16% fixed" and method == "cart":
        return method, ""
    return method, variant


def corruption(number: Number) -> str:
    """Return the corruption of the test images, empty where there is none."""
    return number.setting if number.setting.startswith("corruption") else ""


def quantity(number: Number) -> Quantity:
    """Return what a number is of."""
    method, variant = named(number)
    fixed = method in FIXED and number.column not in AVERAGES
    return Quantity(
        number.model, None if fixed else number.num_tasks, method, "" if fixed else variant, number.column, number.metric,
        corruption(number),
    )  # fmt: skip


def points(number: Number) -> float:
    """Return a value in points of percent where its unit is a fraction, else as it is."""
    return 100 * number.value if number.unit == "fraction" else number.value


def slack(number: Number) -> float:
    """Return half a unit of the last digit of `points`."""
    return 100 * number.half_unit if number.unit == "fraction" else number.half_unit


def in_points(value: float, like: Number) -> str:
    """Return a value of `points` as the paper would print it beside a number."""
    decimals = max(like.decimals, 1)
    return f"{value / 100:.4f}" if like.unit == "fraction" else f"{value:.{decimals}f}"


def by_quantity(those: Iterable[Number]) -> dict[Quantity, list[Number]]:
    """Return the numbers of each quantity."""
    found: dict[Quantity, list[Number]] = {}
    for number in those:
        found.setdefault(quantity(number), []).append(number)
    return found


def rows(those: Iterable[Number]) -> dict[tuple[str, ...], list[Number]]:
    """Return the numbers of each row of each table; a row is what shares all fields but column and metric."""
    found: dict[tuple[str, ...], list[Number]] = {}
    for number in those:
        found.setdefault(number.key[:7], []).append(number)
    return found
