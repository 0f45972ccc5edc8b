"""What the numbers of examples say: accuracies that no count of correct ones gives, and the sizes of data sets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from fusionbench_lite import suites
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


def _tests(number: Number) -> Sequence[int]:
    """Return the sizes of the test sets that a published accuracy may be of: of GLUE the validation splits."""
    if not number.model:
        return ()
    if number.model.startswith("vit"):
        return sorted(_known(number.model, number.column, "").get("test", ()))
    protocols = {"gpt2": ("adarank", "fusionbench"), "roberta": ("adarank",)}.get(number.model, ("fusionbench",))
    return sorted({size for name in protocols for size in _known(number.model, number.column, name).get("validation", ())})


def _known(model: str, task: str, protocol: str) -> Mapping[str, Sequence[int]]:
    """Return the sizes of a task, none where it is none of the packaged ones."""
    try:
        return suites.kind_of(model).sizes(model, task, {"data.protocol": protocol} if protocol else {})
    except InputError:
        return {}


def sizes(numbers: tuple[Number, ...]) -> Iterator[Finding]:
    """Yield sizes of data sets that are not those of the data sets which the experts were tested on."""
    for number in numbers:
        split = _SPLITS.get(number.metric)
        if split is None:
            continue
        known = _of_data_set(number).get(split, ())
        if known and number.value not in known:
            shown = " or ".join(f"{size:,}" for size in known)
            yield Finding(number=number, likely=float(known[0]) if len(known) == 1 else None, reason=f"the data set has {shown}")


def _of_data_set(number: Number) -> Mapping[str, Sequence[int]]:
    """Return the sizes of the data set of a column: images, or texts by the protocol that reads the split."""
    if found := _known("vit_b32", number.column, ""):
        return found
    return _known("gpt2", number.column, "fusionbench" if number.variant == "matched" else "metamerging")
