"""Bad input to `fbl.adapt`: a one-line MergeError that names the task, the key, both values and the hyperparameter."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import fusionbench_lite as fbl
from tests.support.helpers import refused, same_bits, says, setting, snapshot

ADARANK = ["adarank_ta", "adarank_cart", "adarank_tsvm"]
ALL = ["adamerging_taskwise", "adamerging_layerwise", *ADARANK]
KEY = "resblocks.0.mlp.c_fc.weight"


def refuse(*parts: str, method="adamerging_layerwise", s=None, steps=2, **given) -> str:
    s = s or setting(steps=2)
    before = snapshot(s.model.state_dict())
    with refused(*parts) as message:
        fbl.adapt(method, *s.arguments(), steps, **given)
    assert same_bits(s.model.state_dict(), before)
    assert all(p.grad is None for p in s.model.parameters())
    return message[0]


def test_unknown_method_names_the_nearest():
    refuse("adarank_crt", "adarank_cart", method="adarank_crt")


def test_data_free_methods_are_not_adapted():
    refuse("task_arithmetic", "merge", method="task_arithmetic")


def test_unknown_hyperparameter_names_the_nearest():
    refuse("temprature", "temperature", method="adarank_ta", temprature=3)
    refuse("clmap", "clamp", clmap=True)
    refuse("rank_ratio", method="adamerging_layerwise", rank_ratio=0.5)


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("kind", [list, iter])
def test_too_few_batches(method, kind):
    s = setting(steps=7)
    s.batches = {t: kind(b) for t, b in s.batches.items()}
    s.batches["task1"] = kind(setting(steps=7).batches["task1"][:4])
    refuse("task1", r"\b4\b", r"\b7\b", method=method, s=s, steps=7)


@pytest.mark.parametrize("method", ALL)
def test_missing_head(method):
    s = setting(steps=2)
    del s.heads["task2"]
    refuse("task2", "head", method=method, s=s)


@pytest.mark.parametrize("method", ALL)
def test_missing_batches(method):
    s = setting(steps=2)
    del s.batches["task0"]
    refuse("task0", "batch", method=method, s=s)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_batch(method, value):
    s = setting(steps=3)
    s.batches["task1"][2][0, 0, 1, 1] = value
    refuse("task1", "nan|inf|finite", method=method, s=s, steps=3)


@pytest.mark.parametrize("method", ALL)
def test_no_experts(method):
    s = setting(steps=2)
    s.experts = {}
    refuse("expert", method=method, s=s)


# ---------------------------------------------------------------- state dicts


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", [KEY, "class_embedding", "leftover", "unused_attn.weight"])
def test_non_finite_expert(method, value, key):
    s = setting(steps=2)
    s.experts["task1"][key].view(-1)[0] = value
    refuse("task1", re.escape(key), "nan|inf|finite", method=method, s=s)


@pytest.mark.parametrize("method", ALL)
def test_non_finite_base(method):
    s = setting(steps=2)
    s.pretrained[KEY][0, 0] = math.nan
    refuse("pretrained", re.escape(KEY), method=method, s=s)


@pytest.mark.parametrize("method", ALL)
def test_missing_and_extra_keys(method):
    s = setting(steps=2)
    del s.experts["task2"][KEY]
    refuse("task2", re.escape(KEY), method=method, s=s)
    s = setting(steps=2)
    s.experts["task0"]["surplus"] = torch.zeros(2)
    refuse("task0", "surplus", method=method, s=s)


@pytest.mark.parametrize("method", ALL)
def test_shape_and_dtype(method):
    s = setting(steps=2)
    s.experts["task0"][KEY] = torch.zeros(12, 9)
    refuse("task0", re.escape(KEY), r"12,\s*9", r"12,\s*8", method=method, s=s)
    s = setting(steps=2)
    s.experts["task0"][KEY] = s.experts["task0"][KEY].double()
    refuse("task0", re.escape(KEY), "float64", "float32", method=method, s=s)


@pytest.mark.parametrize("method", ALL)
def test_model_that_does_not_fit_the_weights(method):
    s = setting(steps=2)
    for state in (s.pretrained, *s.experts.values()):
        state["proj"] = torch.zeros(8, 5)
    refuse("proj", r"8,\s*5", r"8,\s*6", method=method, s=s)


# ---------------------------------------------------------------- hyperparameters

BAD = {  # every range is tried out in tests/planning/test_hyperparameter_ranges.py: here, that an adaptation asks for it
    "adamerging_taskwise": ("clamp", 2), "adamerging_layerwise": ("lr", 0), "adarank_ta": ("temperature", math.nan),
    "adarank_cart": ("rank_ratio", 1.01), "adarank_tsvm": ("learn", "lambda"),
}
GOOD = [
    (ALL, "scaling", [0, -1, 2.5, np.float32(0.5)]),
    (ALL, "lr", [1e-12, 1, np.float64(1e-3)]),
    (ALL[:2], "clamp", [True, False]),
    (ADARANK, "rank_ratio", [1e-9, 1, 1.0]),
    (ADARANK, "temperature", [1e-3, 1, 1e6]),
    (ADARANK, "learn", ["both", "coefficients", "masks"]),
    (ADARANK, "top_only", [True, False]),
    (ADARANK, "matrices", ["attn_mlp", "all_2d", "encoder_linear", "block_linear", "query_value"]),
]


def cases(table):
    return [(m, n, v) for methods, n, values in table for m in methods for v in values]


@pytest.mark.parametrize("method", BAD)
def test_value_out_of_range(method):
    name, value = BAD[method]
    message = refuse(name, method=method, **{name: value})
    assert says(message, value)


@pytest.mark.parametrize(("method", "name", "value"), cases(GOOD))
def test_value_in_range(method, name, value):
    s = setting(steps=1)
    state = fbl.adapt(method, *s.arguments(), 1, **{name: value}).state_dict()
    assert all(bool(torch.isfinite(v).all()) for v in state.values())


@pytest.mark.parametrize("steps", [-1, 2.5, "2", None, math.nan])
def test_steps(steps):
    refuse("steps", re.escape(str(steps)), steps=steps)


def test_rank_ratio_none_means_one_over_the_number_of_tasks():
    s = setting(steps=1, dtype=torch.float64)
    a = fbl.adapt("adarank_tsvm", *s.arguments(), 1)
    b = fbl.adapt("adarank_tsvm", *s.arguments(), 1, rank_ratio=None)
    assert same_bits(a.state_dict(), b.state_dict())
