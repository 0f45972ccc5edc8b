"""Kinds of fields: what they accept, and the one line for what they do not."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from fusionbench_lite import fields
from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.fields import REQUIRED

MANY = tuple(f"name{letter}" for letter in "abcdefghijkl")


@dataclasses.dataclass(frozen=True)
class Bag:
    """One field of every kind, and one of none."""

    plain: Any
    rate: float = fields.real(REQUIRED, low=0, high=1, open_low=True)
    count: int = fields.integer(3, low=1, high=5, optional=True)
    order: str = fields.choice("stored", ("stored", "shuffled"))
    many: str = fields.choice(MANY[0], MANY)
    name: str | None = fields.word(None, optional=True)
    on: str = fields.device("auto")
    is_set: bool = fields.flag(False)
    threshold: Any = fields.real_per_task(0.5, low=0)  # noqa: RUF009 - a field
    crop: tuple[float, float] | None = fields.interval(None, optional=True)
    chosen: list[str] | None = fields.some_tasks(None, ("dtd", "svhn", "mnist"), optional=True)  # noqa: RUF009 - a field


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("rate", 1, 1.0), ("count", 5, 5), ("count", None, None), ("order", "shuffled", "shuffled"), ("many", "namec", "namec"),
        ("name", "x", "x"), ("name", None, None), ("on", "cuda:1", "cuda:1"), ("on", "auto", "auto"), ("is_set", True, True),
        ("threshold", 1, 1.0), ("threshold", {"dtd": 0}, {"dtd": 0.0}), ("crop", [0.5, 1], (0.5, 1.0)), ("crop", None, None),
        ("chosen", 2, ["dtd", "svhn"]), ("chosen", ["mnist"], ["mnist"]), ("chosen", None, None),
    ],
)
def test_values_are_taken_as_the_field_has_them(name: str, given: Any, taken: Any):
    found = fields.checked(Bag, {name: given})[name]
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("rate", 0, "here.rate must be a finite number in (0, 1], got 0"), ("rate", True, "got True"), ("rate", "0.5", "got '0.5'"),
        ("rate", math.nan, "got nan"), ("rate", None, "here.rate must be a finite number in (0, 1], got null"),
        ("count", 6, "here.count must be an integer from 1 to 5 or null, got 6"), ("count", 0, "got 0"), ("count", 2.0, "got 2.0"),
        ("order", "shufled", "here.order must be one of stored, shuffled (did you mean 'shuffled'?), got 'shufled'"),
        ("order", 3, "here.order must be one of stored, shuffled, got 3"), ("order", None, "got null"),
        ("many", "nameaa", "here.many must be one of 12 names (did you mean 'namea'?), got 'nameaa'"),
        ("many", "zzz", "here.many must be one of 12 names (choose one of namea, nameb, "),
        ("name", "", "here.name must be a name, at least one character long or null, got ''"), ("name", 3, "got 3"),
        ("on", "cud", "(did you mean 'cuda'?), got 'cud'"), ("on", "cuda:", "as cuda:1, got 'cuda:'"), ("on", "auto:1", "got 'a"),
        ("is_set", 1, "here.is_set must be true or false, got 1"),
        ("threshold", {"dtd": -1}, "or such a number for every task as {task: number}, got {'dtd': -1}"),
        ("threshold", "x", "got 'x'"), ("crop", [1, 0.5], "got [1, 0.5]"),
        ("crop", [0, 1], "here.crop must be two numbers [a, b], 0 < a <= b <= 1 or null, got [0, 1]"),
        ("crop", [0.5], "got [0.5]"),
        ("chosen", 4, "here.chosen must be a number from 1 to 3 or a list of different tasks or null, got 4"),
        ("chosen", [], "got []"), ("chosen", True, "got True"), ("chosen", ["dtd", "dtd"], "got ['dtd', 'dtd']"),
        ("chosen", ["dt"], "('dt' is none of the tasks: did you mean 'dtd'?), got ['dt']"),
        ("cout", 1, "unknown key 'here.cout': did you mean 'count'?"), ("plain", 1, "unknown key 'here.plain'"),
    ],
)
def test_one_line_names_key_wanted_and_got(name: str, given: Any, said: str):
    with pytest.raises(MergeError) as refusal:
        fields.checked(Bag, {name: given}, "here.", MergeError)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_object_and_a_mapping_are_verified_alike():
    fields.verify(Bag(None, 0.5))
    fields.verify(Bag, {**dataclasses.asdict(Bag(None, 0.5)), "more": 1})
    with pytest.raises(InputError, match="x: rate must be"):
        fields.verify(Bag(None, 2.0), where="x: ")
    with pytest.raises(InputError, match="x: unknown key 'rat': did you mean 'rate'"):
        fields.checked(Bag, {"rat": 2.0}, "x: ")
    with pytest.raises(TypeError, match="rate"):
        Bag(None)  # type: ignore[call-arg]
