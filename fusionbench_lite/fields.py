"""Kinds of fields: how a dataclass states what each of its values may be, and the one error for a value that is not.

A field made by one of these functions carries a check of its values and the words for what it accepts. Methods declare their
hyperparameters with them, the configuration, commands and recipes their settings. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusionbench_lite.errors import InputError, did_you_mean, nearest

Check = Callable[[Any], Any]
REQUIRED: Any = dataclasses.MISSING
"""The default of a field that has none."""
_FEW = 8
"""Up to so many choices are all named by an error."""


def kind(default: Any, check: Check, wanted: str, *, optional: bool = False, later: bool = False, is_text: bool = False) -> Any:
    """Declare a field. `check` returns the value as the field takes it, or raises ValueError with a hint, which may be empty.

    `wanted`: the words for what is accepted; `optional` allows None. `later`: a value that was added when there were records
    already (`registry.Method.known_by`). `is_text`: on a command line its value is the text as it stands.
    """
    accepts = wanted + (" or null" if optional else "")

    def checked(value: Any) -> Any:
        if value is None and optional:
            return None
        try:
            return check(value)
        except ValueError as hint:
            raise ValueError(accepts + (f" ({hint})" if str(hint) else "")) from None

    metadata = {"check": checked, "accepts": accepts, "optional": optional, "later": later, "is_text": is_text}
    return dataclasses.field(default=default, metadata=metadata)


# Kinds ---------------------------------------------------------------------------------------------------------------


def real(
    default: float | None, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False,
    open_high: bool = False, optional: bool = False, later: bool = False,
) -> Any:
    """Declare a finite real number in an interval."""
    left, right = "(" if open_low or low == -math.inf else "[", ")" if open_high or high == math.inf else "]"

    def check(value: Any) -> float:
        if isinstance(value, (bool, str)) or not isinstance(value, numbers.Real):
            raise ValueError
        number = float(value)
        below = number <= low if open_low else number < low
        above = number >= high if open_high else number > high
        if not math.isfinite(number) or below or above:
            raise ValueError
        return number

    return kind(default, check, f"a finite number in {left}{low:g}, {high:g}{right}", optional=optional, later=later)


def integer(
    default: Any, *, low: int | None = None, high: int | None = None, optional: bool = False, later: bool = False,
) -> Any:
    """Declare an integer; `high` needs `low`."""
    bounds = "" if low is None else f" of at least {low}" if high is None else f" from {low} to {high}"

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise ValueError
        number = int(value)
        if (low is not None and number < low) or (high is not None and number > high):
            raise ValueError
        return number

    return kind(default, check, f"an integer{bounds}", optional=optional, later=later)


def choice(default: str | None, choices: Sequence[str], *, optional: bool = False, later: bool = False) -> Any:
    """Declare one of some words."""
    are_few = len(choices) <= _FEW

    def check(value: Any) -> str:
        if isinstance(value, str) and value in choices:
            return value
        is_known = isinstance(value, str) and nearest(value, choices) is not None
        raise ValueError(did_you_mean(value, choices) if is_known else "" if are_few else f"choose one of {', '.join(choices)}")

    wanted = f"one of {', '.join(choices)}" if are_few else f"one of {len(choices)} names"
    return kind(default, check, wanted, optional=optional, later=later, is_text=True)


def word(default: str | None, *, optional: bool = False) -> Any:
    """Declare a name, of which its reader says whether it is known."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError
        return value

    return kind(default, check, "a name, at least one character long", optional=optional, is_text=True)


def location(default: str | None, *, optional: bool = False) -> Any:
    """Declare a path of a file or folder, which its reader expands (`paths.expanded`).

    On a command line it is taken as the shell hands it over (`planning.arguments`); an empty one, as of a variable that is not
    set, is refused.
    """

    def check(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError
        return value

    declared = kind(default, check, "a path, at least one character long", optional=optional, is_text=True)
    return dataclasses.field(default=default, metadata={**declared.metadata, "is_path": True})


def device(default: str) -> Any:
    """Declare a device by torch's name for it, or auto."""

    def check(value: Any) -> str:
        if isinstance(value, str) and re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", value):
            return value
        devices = ("auto", "cpu", "cuda")
        stem = str(value).partition(":")[0]
        raise ValueError(did_you_mean(stem, devices) if stem not in devices and nearest(stem, devices) else "")

    return kind(default, check, "auto, cpu, cuda or a numbered one, as cuda:1", is_text=True)


def flag(default: Any, *, later: bool = False) -> Any:
    """Declare what is true or false."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return kind(default, check, "true or false", later=later)


def real_per_task(default: float, *, low: float = -math.inf) -> Any:
    """Declare a finite real number, given as one or as a mapping {task: number}.

    Whether the mapping has exactly the tasks is for its reader to say, who knows them.
    """
    single = real(default, low=low).metadata

    def check(value: Any) -> float | dict[str, float]:
        try:
            if not isinstance(value, Mapping):
                return float(single["check"](value))
            return {str(task): float(single["check"](number)) for task, number in value.items()}
        except ValueError:
            raise ValueError from None

    return kind(default, check, f"{single['accepts']}, or such a number for every task as {{task: number}}")


def interval(default: tuple[float, float] | None, *, optional: bool = False) -> Any:
    """Declare the ends (a, b) of a part of (0, 1], given as a list of two numbers."""
    single = real(REQUIRED, low=0, high=1, open_low=True).metadata

    def check(value: Any) -> tuple[float, float]:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError
        try:
            low, high = (float(single["check"](end)) for end in value)
        except ValueError:
            raise ValueError from None
        if low > high:
            raise ValueError
        return low, high

    return kind(default, check, "two numbers [a, b], 0 < a <= b <= 1", optional=optional)


def names(default: tuple[str, ...], *, later: bool = False) -> Any:
    """Declare a list of different names, of which its reader says whether they are known."""

    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) and one for one in value):
            raise ValueError
        if len(set(value)) < len(value):
            raise ValueError("one is there twice")
        return tuple(value)

    return kind(default, check, "a list of names", later=later)


def some_tasks(default: Any, names: Sequence[str], *, optional: bool = False) -> Any:
    """Declare some of the tasks: a list of different ones, or a number for the first so many."""

    def check(value: Any) -> list[str]:
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= len(names):
            return list(names[:value])
        if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
            raise ValueError
        for name in value:
            if name not in names:
                raise ValueError(f"{name!r} is none of the tasks: {did_you_mean(str(name), names)}")
        return value

    return kind(default, check, f"a number from 1 to {len(names)} or a list of different tasks", optional=optional)


# Checking ------------------------------------------------------------------------------------------------------------


def kinds(declared: Any) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a dataclass, or of an object of one, that say what they accept, by name."""
    return {field.name: field for field in dataclasses.fields(declared) if "check" in field.metadata}


def one(key: str, value: Any, declared: Any, error: type[InputError] = InputError) -> Any:
    """Return a value as a field takes it; raises `error` that names the key, what is wanted and what was got."""
    try:
        return declared.metadata["check"](value)
    except ValueError as wanted:
        raise error(f"{key} must be {wanted}, got {'null' if value is None else repr(value)}") from None


def checked(declared: type, values: Mapping[str, Any], where: str = "", error: type[InputError] = InputError) -> dict[str, Any]:
    """Return values as the fields of a dataclass take them.

    `where` stands before the names of keys, as "method.adaptation." or "recipe 'ta': ". Raises `error` for an unknown name and
    for a value that a field does not accept.
    """
    declared_kinds = kinds(declared)
    for name in values:
        if name not in declared_kinds:
            said = f"{where}unknown key {name!r}" if where.endswith(" ") else f"unknown key {where + name!r}"
            raise error(f"{said}: {did_you_mean(name, declared_kinds)}")
    return {name: one(where + name, value, declared_kinds[name], error) for name, value in values.items()}


def verify(declared: Any, values: Any = None, where: str = "") -> None:
    """Raise InputError where a value is not what its field accepts: of an object, or of a mapping that has more keys."""
    for name, field in kinds(declared).items():
        one(where + name, getattr(declared, name) if values is None else values[name], field)


def describe(declared: Any) -> Mapping[str, Any]:
    """Return the values of an object of a dataclass by name."""
    return dataclasses.asdict(declared)
