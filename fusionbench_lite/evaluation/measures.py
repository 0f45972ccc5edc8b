"""How the numbers of a metric are read: its name, its unit and which direction is better. Records state it, tables follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

PERCENT, PLAIN = "percent", ""
HIGHER, LOWER = "higher", "lower"


@dataclasses.dataclass(frozen=True)
class Measure:
    """`name` in records, `label` for people ("Matthews correlation"), `unit` and `direction`.

    In PERCENT the value 0.57 is printed as 57.0, as papers print accuracies and GLUE's tables correlations; any other unit
    is printed as it is. `direction` says whether HIGHER or LOWER values are better.
    """

    name: str
    label: str
    unit: str = PERCENT
    direction: str = HIGHER

    @property
    def scale(self) -> int:
        """What a value is multiplied by where it is printed."""
        return 100 if self.unit == PERCENT else 1

    @property
    def decimals(self) -> int:
        """The decimals that tables print."""
        return 1 if self.unit == PERCENT else 3

    @property
    def higher(self) -> bool:
        """Whether higher values are better."""
        return self.direction == HIGHER

    @property
    def axis(self) -> str:
        """The end of an axis label: the unit in brackets, and the direction where it is not the usual one."""
        unit = " (%)" if self.unit == PERCENT else f" ({self.unit})" if self.unit else ""
        return unit + ("" if self.higher else ", lower is better")

    @property
    def phrase(self) -> str:
        """The label with unit and direction, for sentences: "accuracy in percent"."""
        unit = f" in {self.unit}" if self.unit else ""
        return self.label + unit + ("" if self.higher else " (lower is better)")


ACCURACY = Measure("accuracy", "accuracy")


def measure_of(cell: Mapping[str, Any]) -> Measure:
    """Return the measure that the entry of a task in a record states; records of accuracy need not say more than its name."""
    name = str(cell["metric"])
    return Measure(
        name, str(cell.get("label", name)), str(cell.get("unit", PERCENT)), str(cell.get("direction", HIGHER))
    )


def shared(measures: Iterable[Measure]) -> Measure | None:
    """Return the measure of an average over tasks: that of all, or a "score" where tasks have different ones of the same unit
    and direction, as in GLUE's tables. None where units or directions differ: their average means nothing."""
    distinct = dict.fromkeys(measures)
    if len(distinct) == 1:
        return next(iter(distinct))
    kinds = {(measure.unit, measure.direction) for measure in distinct}
    return Measure("score", "score", *kinds.pop()) if len(kinds) == 1 else None
