"""What the numbers of examples say: accuracies that no count of correct ones gives, and the sizes of data sets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from fusionbench_lite import suites
from fusionbench_lite.data import vision
from fusionbench_lite.data.text import glue_names
from fusionbench_lite.errors import InputError
from fusionbench_lite.tables.audit.found import Finding, is_task
from fusionbench_lite.tables.published import Number

_SPLITS = {"num_train": "train", "num_validation": "validation", "num_test": "test", "num_classes": "classes"}


def fractions(numbers: tuple[Number, ...]) -> Iterator[Finding]:
    """Yield accuracies that no number of correct examples of the task's test sets rounds to.

    Seen only where one example moves the printed digits: with one decimal in percent a test set below 1,000 examples, with four in
    fractions one below 10,000. Test sets of every size that published results use are allowed.
    """
    for number in numbers:
        if number.metric != "accuracy" or not is_task(number) or number.unit not in ("percent", "fraction"):
            continue
        counts = _tests(number)
        if counts and not any(_possible(number, count) for count in counts):
            near = min((_nearest(number, count) for count in counts), key=lambda value: abs(value - number.value))
            sizes = " or ".join(f"{count:,}" for count in counts)
            yield Finding(number=number, reason=f"no number of correct examples of {sizes} gives it; {near:.5g} comes nearest")


def _scale(number: Number) -> float:
    return 100.0 if number.unit == "percent" else 1.0


def _nearest(number: Number, count: int) -> float:
    return _scale(number) * round(number.value / _scale(number) * count) / count


def _possible(number: Number, count: int) -> bool:
    """Whether an accuracy of so many examples lies in what the print may stand for, rounded or cut off."""
    low = math.ceil((number.value - number.half_unit) / _scale(number) * count - 1e-9)
    return low / count * _scale(number) < number.value + 2 * number.half_unit + 1e-9


def _tests(number: Number) -> tuple[int, ...]:
    """Return the sizes of the test sets that a published accuracy may be of."""
    if number.column in vision.names():
        return tuple(sorted({size for variant in vision.VARIANTS for size in vision.task(number.column, variant).test_sizes}))
    if number.column in glue_names() and number.model:
        kind = suites.kind_of(number.model)
        found = {kind.sizes(number.model, number.column, {"data.protocol": name}).get("validation") for name in _protocols(number)}
        return tuple(sorted(size for size in found if size))
    return ()


def _protocols(number: Number) -> list[str]:
    return {"gpt2": ["adarank", "fusionbench"], "roberta": ["adarank"]}.get(number.model, ["fusionbench"])


def sizes(numbers: tuple[Number, ...]) -> Iterator[Finding]:
    """Yield sizes of data sets that are not those of the data sets which the experts were tested on."""
    for number in numbers:
        split = _SPLITS.get(number.metric)
        if split is None:
            continue
        known = _size(number, split)
        if known and number.value not in known:
            shown = " or ".join(f"{size:,}" for size in sorted(known))
            yield Finding(number=number, likely=float(min(known)) if len(known) == 1 else None, reason=f"the data set has {shown}")


def _size(number: Number, split: str) -> set[int]:
    if number.column in vision.names():
        tasks = [vision.task(number.column, variant) for variant in vision.VARIANTS]
        by_split: Mapping[str, set[int]] = {
            "train": {task.train for task in tasks}, "classes": {task.classes for task in tasks},
            "test": {size for task in tasks for size in task.test_sizes},
        }
        return by_split.get(split, set())
    protocol = {"matched": "fusionbench", "mismatched": "metamerging"}.get(number.variant, "metamerging")
    try:
        found = suites.kind_of("gpt2").sizes("gpt2", number.column, {"data.protocol": protocol})
    except InputError:  # WNLI is no task of any merge
        return set()
    return {found[split]} if split in found else set()
