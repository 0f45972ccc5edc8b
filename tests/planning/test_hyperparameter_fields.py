"""The seven kinds of hyperparameter fields: what each takes, what it makes of it, and the words of its refusals.

Every method builds its hyperparameters of these kinds, so this is where bounds, types and messages are tried out; that a method
declares the right bounds is in test_hyperparameter_ranges.py.
"""

from __future__ import annotations

import dataclasses
import decimal
import fractions
import math

import numpy as np
import pytest

from fusionbench_lite import fields, registry
from fusionbench_lite.errors import MergeError

NOT_NUMBERS = ["0.3", "", "nan", None, [0.3], (1,), {}, {1.0}, 1j, True, False, np.bool_(True), np.array([1.0]), b"1",
               decimal.Decimal("0.5")]
NOT_FINITE = [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("-inf")]
BELOW, ABOVE = math.nextafter(0, -1), math.nextafter(1, 2)
TINY, UNDER = math.nextafter(0, 1), math.nextafter(1, 0)


def taken(field, value):
    """The value of a hyperparameter `x` that is declared by `field`."""
    return method_of(field).configure(x=value).x


def refused(field, value) -> str:
    with pytest.raises(MergeError) as caught:
        taken(field, value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def method_of(field) -> registry.Method:
    hyperparameters = dataclasses.make_dataclass("Hyperparameters", [("x", object, field)], frozen=True)
    return registry.Method(id="anything", function=lambda experts, h: None, hyperparameters=hyperparameters)


def shown(value) -> str:
    """A value as errors show it."""
    return "null" if value is None else repr(value)


# ---------------------------------------------------------------- real


def unit(**more):
    return fields.real(0.5, low=0, high=1, **more)


@pytest.mark.parametrize(
    ("open_low", "open_high", "accepts", "inside", "outside"),
    [
        (False, False, "[0, 1]", [0, -0.0, 1, TINY, UNDER], [BELOW, ABOVE]),
        (True, False, "(0, 1]", [1, TINY, UNDER], [0, 0.0, -0.0, BELOW, ABOVE]),
        (False, True, "[0, 1)", [0, TINY, UNDER], [1, 1.0, BELOW, ABOVE]),
        (True, True, "(0, 1)", [TINY, UNDER], [0, 1, BELOW, ABOVE]),
    ],
)
def test_ends_of_an_interval(open_low, open_high, accepts, inside, outside):
    field = unit(open_low=open_low, open_high=open_high)
    for value in inside:
        assert taken(field, value) == value
    for value in [*outside, -20, 20]:
        said = refused(field, value)
        assert said == f"method 'anything': x must be a finite number in {accepts}, got {value!r}"
    assert method_of(field).accepted == {"x": f"a finite number in {accepts}"}


@pytest.mark.parametrize(
    ("bounds", "accepts", "inside", "outside"),
    [
        ({}, "(-inf, inf)", [-1e308, 0, 1e308], []),
        ({"low": 0}, "[0, inf)", [0, 1e308], [BELOW]),
        ({"low": 0, "open_low": True}, "(0, inf)", [TINY, 1e308], [0, BELOW]),
        ({"high": 100}, "(-inf, 100]", [-1e308, 100], [100.001]),
        ({"low": -2.5, "high": 100, "open_high": True}, "[-2.5, 100)", [-2.5, 99.9], [100, -2.51]),
    ],
)
def test_an_interval_without_an_end(bounds, accepts, inside, outside):
    field = fields.real(1.0, **bounds)
    assert [taken(field, value) for value in inside] == inside
    for value in outside:
        assert f"x must be a finite number in {accepts}, got {value!r}" in refused(field, value)
    assert method_of(field).accepted == {"x": f"a finite number in {accepts}"}


@pytest.mark.parametrize("value", [*NOT_NUMBERS, *NOT_FINITE], ids=repr)
@pytest.mark.parametrize("field", [unit(), fields.real(0.3)], ids=["bounded", "unbounded"])
def test_what_is_no_finite_number(field, value):
    assert refused(field, value).endswith(f", got {shown(value)}")


@pytest.mark.parametrize("value", [1, 0.25, np.float32(0.25), np.float64(0.5), np.int64(1), np.uint8(1), fractions.Fraction(1, 4)])
def test_every_kind_of_number_becomes_a_float(value):
    got = taken(unit(), value)
    assert type(got) is float
    assert got == float(value)


def test_null_is_for_optional_reals_only():
    field = unit(open_low=True, optional=True)
    assert taken(field, None) is None
    assert taken(field, 0.5) == 0.5
    assert refused(field, 0).endswith("x must be a finite number in (0, 1] or null, got 0")
    assert refused(unit(), None).endswith("x must be a finite number in [0, 1], got null")
    assert not isinstance(taken(fields.real(None, optional=True), 2), int)
    for value in [one for one in (*NOT_NUMBERS, *NOT_FINITE) if one is not None]:
        refused(field, value)


# ---------------------------------------------------------------- integer


@pytest.mark.parametrize(
    "value", ["3", "", None, math.nan, math.inf, 2.5, 3.0, [3], True, False, 1j, np.float64(3), np.bool_(True)], ids=repr
)
@pytest.mark.parametrize("low", [None, 0, 1])
def test_what_is_no_integer(low, value):
    accepts = "an integer" if low is None else f"an integer of at least {low}"
    assert refused(fields.integer(1, low=low), value) == f"method 'anything': x must be {accepts}, got {shown(value)}"


def test_the_lower_end_of_an_integer():
    for low in (0, 1):
        field = fields.integer(5, low=low)
        assert [taken(field, value) for value in (low, low + 1, 10**9, 2**63)] == [low, low + 1, 10**9, 2**63]
        for value in (low - 1, -400, np.int64(low - 1)):
            assert refused(field, value).endswith(f"x must be an integer of at least {low}, got {value!r}")
    assert [taken(fields.integer(0), value) for value in (-5, 0, 2**63)] == [-5, 0, 2**63]


@pytest.mark.parametrize("value", [np.int64(7), np.uint8(7), np.int32(7), 7])
def test_every_kind_of_integer_becomes_an_int(value):
    assert type(taken(fields.integer(0, low=0), value)) is int
    assert taken(fields.integer(0), value) == 7


def test_null_is_for_optional_integers_only():
    field = fields.integer(None, low=0, optional=True)
    assert taken(field, None) is None
    assert taken(field, 0) == 0
    assert refused(field, -1).endswith("x must be an integer of at least 0 or null, got -1")
    assert method_of(fields.integer(None, optional=True)).accepted == {"x": "an integer or null"}
    refused(fields.integer(1), None)


# ---------------------------------------------------------------- words and flags


@pytest.mark.parametrize("value", ["", "Row", "rows ", None, 1, True, math.nan, ["row"], ("row",), b"row", "row,tensor"], ids=repr)
def test_what_is_not_one_of_the_words(value):
    said = refused(fields.choice("row", ("row", "tensor")), value)
    assert said.startswith("method 'anything': x must be one of row, tensor")
    assert said.endswith(f", got {shown(value)}")


def test_the_words_and_a_nearly_right_one():
    field = fields.choice("row", ("row", "tensor"))
    assert [taken(field, word) for word in ("row", "tensor")] == ["row", "tensor"]
    assert method_of(field).accepted == {"x": "one of row, tensor"}
    assert "x must be one of row, tensor (did you mean 'tensor'?), got 'tensors'" in refused(field, "tensors")
    assert "did you mean" not in refused(field, "something else")


@pytest.mark.parametrize("value", ["", 1, 0.5, True, math.nan, ["name"], b"name", {}], ids=repr)
def test_what_is_no_name(value):
    for optional, accepts in ((False, ""), (True, " or null")):
        said = refused(fields.word("name", optional=optional), value)
        assert said == f"method 'anything': x must be a name, at least one character long{accepts}, got {value!r}"


def test_names_and_null():
    assert taken(fields.word("a"), "any name") == "any name"
    assert taken(fields.word(None, optional=True), None) is None
    refused(fields.word("a"), None)


@pytest.mark.parametrize("value", [0, 1, "true", "yes", "", None, math.nan, 2, [True], np.bool_(True), 1.0], ids=repr)
def test_what_is_neither_true_nor_false(value):
    assert refused(fields.flag(True), value) == f"method 'anything': x must be true or false, got {shown(value)}"


def test_true_and_false():
    assert taken(fields.flag(False), True) is True
    assert taken(fields.flag(True), False) is False


# ---------------------------------------------------------------- a number, or one for every task


def test_a_number_or_one_for_every_task():
    field = fields.real_per_task(0.4, low=0)
    assert taken(field, np.float32(0.25)) == 0.25
    assert taken(field, {"a": 0, "b": np.float64(5)}) == {"a": 0.0, "b": 5.0}
    assert all(type(value) is float for value in taken(field, {"a": 0, "b": np.int64(5)}).values())
    assert taken(field, {}) == {}
    assert taken(fields.real_per_task(0.4), {"a": -3}) == {"a": -3.0}
    assert method_of(field).accepted == {
        "x": "a finite number in [0, inf), or such a number for every task as {task: number}",
    }


@pytest.mark.parametrize("value", [one for one in (BELOW, -1, *NOT_NUMBERS, *NOT_FINITE) if one != {}], ids=repr)
def test_a_bad_number_for_all_tasks_or_for_one(value):
    field = fields.real_per_task(0.4, low=0)
    wanted = "x must be a finite number in [0, inf), or such a number for every task as {task: number}"
    assert refused(field, value).endswith(f"{wanted}, got {shown(value)}")
    assert f"{wanted}, got {{'a': 0.3, 'b': " in refused(field, {"a": 0.3, "b": value})


# ---------------------------------------------------------------- methods


def test_names_of_hyperparameters():
    method = method_of(fields.real(0.3))
    assert method.defaults == {"x": 0.3}
    assert method.configure().x == 0.3
    with pytest.raises(MergeError, match="^method 'anything' has no hyperparameter 'xx': did you mean 'x'"):
        method.configure(xx=1)
    nothing = registry.Method(id="nothing", function=lambda experts, h: None, hyperparameters=registry.NoHyperparameters)
    with pytest.raises(MergeError, match="^method 'nothing' has no hyperparameter 'x': it has none$"):
        nothing.configure(x=1)


def test_only_integers_can_be_later():
    assert method_of(fields.integer(0, later=True)).known_by({"x": 0}) == {}
    assert method_of(fields.integer(0, later=True)).known_by({"x": 1}) == {"x": 1}
    for field in (fields.integer(0), fields.real(0.0), fields.flag(False), fields.word("a"), fields.choice("a", ("a",))):
        assert set(method_of(field).known_by({"x": method_of(field).defaults["x"]})) == {"x"}
