"""Kinds of fields: how a dataclass states what each of its values may be.

A field made by one of these functions carries a check of its values and the words for what it accepts. Methods declare their
hyperparameters with them. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from fusionbench_lite.errors import did_you_mean

Check = Callable[[Any], Any]


def _field(default: Any, check: Check, accepts: str, later: bool = False) -> Any:
    return dataclasses.field(default=default, metadata={"check": check, "accepts": accepts, "later": later})


def real(
    default: float | None, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False,
    open_high: bool = False, optional: bool = False,
) -> Any:
    """Declare a finite real hyperparameter in an interval; `optional` allows None."""
    left, right = "(" if open_low or low == -math.inf else "[", ")" if open_high or high == math.inf else "]"
    wanted = f"a finite number in {left}{low:g}, {high:g}{right}" + (" or null" if optional else "")

    def check(value: Any) -> float | None:
        if value is None and optional:
            return None
        if isinstance(value, (bool, str)) or not isinstance(value, numbers.Real):
            raise TypeError(wanted)
        number = float(value)
        below = number <= low if open_low else number < low
        above = number >= high if open_high else number > high
        if not math.isfinite(number) or below or above:
            raise ValueError(wanted)
        return number

    return _field(default, check, wanted)


def integer(default: int | None, *, low: int | None = None, optional: bool = False, later: bool = False) -> Any:
    """Declare an integer hyperparameter with an optional lower end; `optional` allows None, `later` see `Method.known_by`."""
    wanted = ("an integer" if low is None else f"an integer of at least {low}") + (" or null" if optional else "")

    def check(value: Any) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(wanted)
        if low is not None and int(value) < low:
            raise ValueError(wanted)
        return int(value)

    return _field(default, check, wanted, later)


def choice(default: str, choices: tuple[str, ...]) -> Any:
    """Declare a hyperparameter that is one of some words."""
    wanted = f"one of {', '.join(choices)}"

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            hint = did_you_mean(str(value), choices) if isinstance(value, str) else ""
            raise ValueError(wanted + (f" ({hint})" if hint.startswith("did") else ""))
        return value

    return _field(default, check, wanted)


def word(default: str | None, *, optional: bool = False) -> Any:
    """Declare a hyperparameter that is a name, of which the method says whether it knows it; `optional` allows None."""
    wanted = "a name, at least one character long" + (" or null" if optional else "")

    def check(value: Any) -> str | None:
        if value is None and optional:
            return None
        if not isinstance(value, str) or not value:
            raise TypeError(wanted)
        return value

    return _field(default, check, wanted)


def flag(default: bool) -> Any:
    """Declare a hyperparameter that is true or false."""
    wanted = "true or false"

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError(wanted)
        return value

    return _field(default, check, wanted)


def real_per_task(default: float, *, low: float = -math.inf) -> Any:
    """Declare a finite real hyperparameter, given as one number or as a mapping {task: number}.

    Whether the mapping has exactly the tasks is for the method to say, which knows them.
    """
    single = real(default, low=low).metadata

    def check(value: Any) -> float | dict[str, float]:
        if not isinstance(value, Mapping):
            return float(single["check"](value))
        try:
            return {str(task): float(single["check"](number)) for task, number in value.items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{error} for every task") from None

    return _field(default, check, f"{single['accepts']}, or such a number for every task as {{task: number}}")


def describe(hyperparameters: Any) -> Mapping[str, Any]:
    """Return the values of a hyperparameter object by name."""
    return dataclasses.asdict(hyperparameters)
