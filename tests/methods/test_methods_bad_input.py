"""Bad input to `fbl.merge`: a one-line MergeError that names the task, the key, both values and the hyperparameter."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import fusionbench_lite as fbl
from tests.support.helpers import clip_state, experts_of, refused, same_bits, says, snapshot

METHODS = ["pretrained", "individual", "weight_averaging", "task_arithmetic", "ties_merging", "tsv_m", "cart", "iso_c"]
KEY = "visual.transformer.resblocks.0.mlp.c_fc.weight"


def refuse(*parts: str, method="task_arithmetic", base=None, experts=None, **given) -> str:
    base = clip_state() if base is None else base
    experts = experts_of(base) if experts is None else experts
    with refused(*parts) as message:
        fbl.merge(method, base, experts, **given).state_dict(next(iter(experts)) if method == "individual" else None)
    return message[0]


def broken(change, task="task1"):
    base = clip_state()
    experts = experts_of(base)
    change(experts[task])
    return base, experts


# ---------------------------------------------------------------- names


def test_methods_are_listed():
    listed = fbl.methods()
    assert listed == sorted(listed)
    assert {*METHODS, "traditional_mtl", "adamerging_layerwise", "adarank_cart"} <= set(listed)


def test_unknown_method_names_the_nearest():
    assert "ties_merging" in refuse("ties_mergin", method="ties_mergin")
    refuse("task_arithmetic", method="task_arithmetics")
    refuse("nothing_like_it", method="nothing_like_it")


def test_unknown_hyperparameter_names_the_nearest():
    refuse("scalling", "scaling", scalling=0.3)
    refuse("rank_ration", "rank_ratio", method="cart", rank_ration=0.3)
    refuse("scaling", method="weight_averaging", scaling=0.3)
    refuse("keep", method="task_arithmetic", keep=0.3)


def test_adaptive_methods_are_not_merged():
    refuse("adamerging_layerwise", "adapt", method="adamerging_layerwise")


# ---------------------------------------------------------------- state dicts


@pytest.mark.parametrize("method", METHODS)
def test_no_experts(method):
    with pytest.raises(fbl.MergeError, match="expert"):
        fbl.merge(method, clip_state(), {})


@pytest.mark.parametrize("method", METHODS)
def test_missing_key(method):
    base, experts = broken(lambda e: e.pop(KEY))
    refuse("task1", re.escape(KEY), method=method, base=base, experts=experts)


@pytest.mark.parametrize("method", METHODS)
def test_extra_key(method):
    base, experts = broken(lambda e: e.update({"visual.extra": torch.zeros(3)}))
    refuse("task1", "visual.extra", method=method, base=base, experts=experts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(16, 9), (128,), (1, 16, 8), (8, 16)])
def test_shape_mismatch(method, shape):
    base, experts = broken(lambda e: e.update({KEY: torch.zeros(shape)}))
    wanted = r",\s*".join(map(str, shape))
    refuse("task1", re.escape(KEY), wanted, r"16,\s*8", method=method, base=base, experts=experts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64])
def test_dtype_mismatch(method, dtype):
    base, experts = broken(lambda e: e.update({KEY: e[KEY].to(dtype)}))
    refuse("task1", re.escape(KEY), str(dtype).split(".")[1], "float32", method=method, base=base, experts=experts)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "pretrained"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", [KEY, "visual.class_embedding", "visual.conv1.weight"])
def test_non_finite_expert(method, value, key):
    base, experts = broken(lambda e: e[key].view(-1)[-1].fill_(value), "task0")
    refuse("task0", re.escape(key), "nan|inf|finite", method=method, base=base, experts=experts)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "individual"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_base(method, value):
    base = clip_state()
    experts = experts_of(base)
    base[KEY][3, 1] = value
    refuse("pretrained", re.escape(KEY), "nan|inf|finite", method=method, base=base, experts=experts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_non_finite_values_of_other_dtypes(dtype):
    base = clip_state(dtype=dtype)
    experts = experts_of(base)
    experts["task2"][KEY][0, 0] = math.nan
    refuse("task2", re.escape(KEY), base=base, experts=experts)


def test_what_is_not_a_tensor():
    base, experts = broken(lambda e: e.update({KEY: [[1.0] * 8] * 16}))
    refuse("task1", re.escape(KEY), base=base, experts=experts)
    base, experts = broken(lambda e: e.update({KEY: np.zeros((16, 8), dtype=np.float32)}))
    refuse("task1", re.escape(KEY), base=base, experts=experts)


def test_an_expert_that_is_not_a_mapping():
    base = clip_state()
    refuse("task1", base=base, experts={**experts_of(base, 1), "task1": None})


@pytest.mark.parametrize("change", ["missing", "shape", "nan"])
def test_multitask_is_checked_too(change):
    base = clip_state()
    experts = experts_of(base)
    joint = dict(experts["task0"])
    if change == "missing":
        del joint[KEY]
    elif change == "shape":
        joint[KEY] = torch.zeros(2, 2)
    else:
        joint[KEY] = torch.full((16, 8), math.nan)
    refuse(re.escape(KEY), method="traditional_mtl", base=base, experts=experts, multitask=joint)
    refuse("multitask", method="traditional_mtl", base=base, experts=experts)
    refuse("multitask", method="traditional_mtl", base=base, experts=experts, multitask=None)


def test_inputs_survive_a_refusal():
    base, experts = broken(lambda e: e[KEY].view(-1)[-1].fill_(math.inf), "task2")
    before = snapshot(base), {t: snapshot(e) for t, e in experts.items()}
    for method in METHODS[1:]:
        refuse("task2", method=method, base=base, experts={"task2": experts["task2"], **experts})
    assert same_bits(base, before[0])
    assert all(same_bits(experts[t], before[1][t]) for t in experts)


# ---------------------------------------------------------------- hyperparameters

SCALED = ["task_arithmetic", "ties_merging", "tsv_m", "cart", "iso_c"]


@pytest.mark.parametrize("method", SCALED)
@pytest.mark.parametrize("value", [0, 1, -2, 0.0, 7.5, np.float32(0.25), np.float64(0.5), np.int64(2)])
def test_scaling_accepts_every_finite_number(method, value):
    base = clip_state()
    experts = experts_of(base)
    state = fbl.merge(method, base, experts, scaling=value).state_dict()
    assert same_bits(state, fbl.merge(method, base, experts, scaling=float(value)).state_dict())


BAD = {  # every range is tried out in tests/planning/test_hyperparameter_ranges.py: here, that a merge asks for it
    "task_arithmetic": ("scaling", math.inf), "ties_merging": ("keep", 0), "tsv_m": ("matrices", "attn"),
    "cart": ("rank_ratio", "0.5"), "iso_c": ("scaling", None),
}
GOOD = [
    ("ties_merging", "keep", [1e-9, 1, 1.0, 0.5, np.float32(0.5)]),
    ("ties_merging", "reduce", ["sum", "mean", "max"]),
    ("ties_merging", "virtual_zeros", [0, 1, 10**9, np.int64(7)]),
    ("tsv_m", "rank_ratio", [None, 1e-9, 1, 1.0, np.float64(0.5)]),
    ("tsv_m", "matrices", ["attn_mlp", "all_2d", "encoder_linear", "block_linear", "query_value"]),
    ("cart", "rank_ratio", [1e-9, 1, 1.0, 0.5]),
    ("cart", "matrices", ["attn_mlp", "all_2d", "encoder_linear", "block_linear", "query_value"]),
    ("iso_c", "matrices", ["attn_mlp", "all_2d", "encoder_linear", "block_linear", "query_value"]),
]


@pytest.mark.parametrize("method", BAD)
def test_value_out_of_range(method):
    name, value = BAD[method]
    message = refuse(name, method=method, **{name: value})
    assert says(message, value)


@pytest.mark.parametrize(("method", "name", "value"), [(m, n, v) for m, n, values in GOOD for v in values])
def test_value_in_range(method, name, value):
    base = clip_state()
    state = fbl.merge(method, base, experts_of(base), **{name: value}).state_dict()
    assert all(bool(torch.isfinite(v).all()) for v in state.values())


def test_a_nearly_right_word_is_suggested():
    refuse("reduce", "mean", method="ties_merging", reduce="meen")
    refuse("matrices", "all_2d", method="tsv_m", matrices="all_2D")
