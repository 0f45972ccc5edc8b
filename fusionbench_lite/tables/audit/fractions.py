"""Accuracies that no count of correct examples gives: k of N in percent, rounded to the printed digits.

With one decimal this shows something only where N is below 1,000 (MRPC, RTE, SST-2; doGe's scores relative to a specialist,
which are counts over the specialist's own), with two decimals or four of a fraction below 10,000. A number that passes has its
last digit confirmed to the extent that few values are possible: `Power` says how few.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from fusionbench_lite.paths import package_dir
from fusionbench_lite.tables.audit.findings import Finding
from fusionbench_lite.tables.published import Number

CHECK = "fractions"
SPECIALISTS = {"gsm8k": 847, "math": 701, "human_eval": 60, "mbpp": 170}
"""What doGe's table 10 divides by: the examples that the specialist of each set solves (WizardMath's 64.22 % of 1,319 and 14.02 %
of 5,000, WizardLM's 36.59 % of 164 and 34 % of 500, as DARE reports them)."""
MANY = 3
"""So many impossible numbers of one paper on one task are no misprints."""


class Power(NamedTuple):
    """How much the check can see in one column at one precision: `possible` of the printable values are some count's."""

    column: str
    examples: int
    decimals: int
    checked: int
    impossible: int
    possible: float


@functools.cache
def _described() -> dict[str, Mapping[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    files = (package_dir() / "data" / file for file in ("vision/tasks.yaml", "text/glue.yaml"))
    return {name: task for file in files for name, task in yaml.load(file.read_text(encoding="utf-8"), Loader=loader).items()}


def described(task: str) -> Mapping[str, Any]:
    """Return what the package's data files say of a published task, nothing for another."""
    return _described().get(task, {})


def examples(task: str) -> int | None:
    """Return the number of test examples of a task, None where it is not one of accuracy."""
    found = described(task)
    rows = found.get("rows", {})
    size = found.get("test") or found.get("tall", {}).get("test") or rows.get("validation") or rows.get("validation_matched")
    return size if isinstance(size, int) and found.get("metric", "accuracy") == "accuracy" else None


def total(number: Number) -> int | None:
    """Return what a number is a count over, None where it is no such fraction."""
    if number.unit == "normalized":
        return SPECIALISTS.get(number.column) if number.metric == "normalized_score" else None
    return examples(number.column) if number.metric == "accuracy" else None


def precision(number: Number) -> int:
    """Return the decimals of a percentage, or of a fraction in percent."""
    return number.decimals - 2 if number.unit == "fraction" else max(number.decimals, 1)


def counts(value: float, of: int, decimals: int, *, cut: bool = False) -> list[int]:
    """Return the counts whose percentage has these digits, rounded or (`cut`) without those that follow."""
    low, high = (0.0, 10.0**-decimals) if cut else (-0.5 * 10.0**-decimals, 0.5 * 10.0**-decimals)
    first, last = math.floor((value + low) * of / 100) - 1, math.ceil((value + high) * of / 100) + 1
    edge = 1e-9
    return [k for k in range(max(first, 0), last + 1) if low - edge <= 100 * k / of - value <= high + (-edge if cut else edge)]


def check(those: Iterable[Number]) -> Iterator[Finding]:
    """Yield the numbers that no count gives."""
    bad = []
    for number in those:
        of = total(number)
        if of is not None and number.method != "dataset" and not counts(percent(number), of, precision(number)):
            bad.append((number, of))
    often = collections.Counter((number.paper, number.column) for number, _ in bad)
    for number, of in bad:
        yield _finding(number, of, often[number.paper, number.column])


def percent(number: Number) -> float:
    """Return a number in percent."""
    return 100 * number.value if number.unit == "fraction" else number.value


def _finding(number: Number, of: int, often: int) -> Finding:
    decimals, value = precision(number), percent(number)
    nearest = round(value * of / 100)
    right = 100 * nearest / of
    likely: str | None = f"{right / 100:.{decimals + 2}f}" if number.unit == "fraction" else f"{right:.{decimals}f}"
    reason = f"No count of {of:,} gives these digits; {nearest} of them is {likely}."
    if cut := counts(value, of, decimals, cut=True):
        reason += f" It is {cut[0]} with the further digits cut off."
    elif often >= MANY:
        reason += f" {often} numbers of the paper on this task are so: measured otherwise, perhaps as a mean over batches."
        likely = None
    return Finding(
        check=CHECK, kind="impossible_fraction", severity="low", number=number, other=f"{right:.3f}", likely=likely, reason=reason,
    )  # fmt: skip


def power(those: Iterable[Number]) -> list[Power]:
    """Return what the check can see, column by column, where not every printable value is possible."""
    groups: dict[tuple[str, int, int], list[Number]] = {}
    for number in those:
        of = total(number)
        if of is not None and number.method != "dataset" and of < 100 * 10 ** precision(number):
            groups.setdefault((number.column, of, precision(number)), []).append(number)
    found = []
    for (column, of, decimals), there in groups.items():
        bad = sum(1 for _ in check(there))
        found.append(Power(column, of, decimals, len(there), bad, (of + 1) / (100 * 10**decimals + 1)))
    return sorted(found, key=lambda one: one.possible)
