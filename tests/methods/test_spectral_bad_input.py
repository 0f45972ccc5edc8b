"""Hyperparameters of the spectral and the optimised methods: out of range or of the wrong type is a one-line MergeError."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import fusionbench_lite as fbl
from tests.support.helpers import experts_of, refused, rng, same_bits, says
from tests.support.spectral_cases import hf_clip_state

pytestmark = pytest.mark.filterwarnings("ignore:.*numerical rank:UserWarning")  # rank="fixed" on deficient matrices

KEY = "vision_model.encoder.layers.0.mlp.fc1.weight"
METHODS = ["tsv_c", "iso_cts", "star", "knots_ta", "knots_ties", "doge_ta", "awd_ta", "wudi"]
OPTIMISED = ["doge_ta", "awd_ta", "wudi"]


def small():
    base = hf_clip_state(width=4)
    return base, experts_of(base, 2, size=1e-2)


def refuse(method, *parts, base=None, experts=None, **given_) -> str:
    if base is None:
        base, experts = small()
    with refused(*parts) as message:
        fbl.merge(method, base, experts, **given_).state_dict(next(iter(experts)) if method == "tsv_c" else None)
    return message[0]


BAD = {  # every range is tried out in tests/planning/test_hyperparameter_ranges.py: here, that a merge asks for it
    "tsv_c": ("rank_ratio", 0), "iso_cts": ("common_fraction", 1.01), "star": ("eta", 100.001), "knots_ta": ("cutoff", -1e-5),
    "knots_ties": ("keep", 1.0001), "doge_ta": ("subspace_divisor", 0), "awd_ta": ("alpha", "0.3"), "wudi": ("steps", -1),
}
GOOD = [
    ("tsv_c", "rank_ratio", [None, 1e-9, 1, 0.5, np.float32(0.5)]),
    ("tsv_m", "rank", ["fixed", "numerical"]),
    ("iso_c", "rank", ["fixed", "numerical"]),
    ("iso_cts", "scaling", [0, -2, 7.5, np.float64(0.5), np.int64(2)]),
    ("iso_cts", "common_fraction", [0, 0.0, 0.5, 1, 1.0, np.float32(0.5)]),
    ("iso_cts", "matrices", ["attn_mlp", "all_2d", "encoder_linear", "block_linear", "query_value"]),
    ("star", "eta", [1e-9, 1, 40, 40.0, 100, np.float32(40)]),
    ("knots_ta", "scaling", [0, -2, 7.5, np.int64(2)]),
    ("knots_ta", "cutoff", [0, 0.0, 1e-12, 1e9]),
    ("knots_ties", "scaling", [0, -2, 7.5]),
    ("knots_ties", "cutoff", [0, 0.0, 1e-12, 1e9]),
    ("knots_ties", "keep", [1e-9, 0.5, 1, 1.0]),
    ("doge_ta", "eta", [1e-12, 1, 5.0]),
    ("doge_ta", "keep", [1e-9, 0.5, 1]),
    ("doge_ta", "lr", [1e-12, 1, np.float64(0.1)]),
    ("doge_ta", "subspace_divisor", [1, 6, 10**9, np.int64(3)]),
    ("doge_ta", "matrices", ["attn_mlp", "all_2d", "encoder_linear", "block_linear", "query_value"]),
    ("doge_ta", "rank", ["fixed", "numerical"]),
    ("doge_ta", "coefficients", ["layer", "task", "uniform"]),
    ("doge_ta", "scaling", [0, -1, 2.5]),
    ("doge_ta", "projection", ["orthogonal", "none", "onto"]),
    ("doge_ta", "loss", ["row", "matrix"]),
    ("awd_ta", "alpha", [0, 0.0, 1, 1e6]),
    ("awd_ta", "lr", [1e-12, 1, np.float32(0.1)]),
    ("awd_ta", "scaling", [0, -1, 2.5]),
    ("awd_ta", "group", ["tensor", "global"]),
    ("awd_ta", "optimizer", ["gd", "adam"]),
    ("wudi", "lr", [1e-12, 1, np.float32(0.1)]),
]


@pytest.mark.parametrize("method", BAD)
def test_value_out_of_range(method):
    name, value = BAD[method]
    message = refuse(method, name, **{name: value})
    assert says(message, value)


@pytest.mark.parametrize(("method", "name", "value"), [(m, n, v) for m, n, values in GOOD for v in values])
def test_value_in_range(method, name, value):
    base, experts = small()
    steps = {"steps": 2} if method in OPTIMISED else {}
    state = fbl.merge(method, base, experts, **{name: value}, **steps).state_dict("task0")
    assert all(bool(torch.isfinite(v).all()) for v in state.values())


@pytest.mark.parametrize("method", OPTIMISED)
@pytest.mark.parametrize("steps", [0, 1, np.int64(2)])
def test_steps_in_range(method, steps):
    base, experts = small()
    assert all(bool(torch.isfinite(v).all()) for v in fbl.merge(method, base, experts, steps=steps).state_dict().values())


@pytest.mark.parametrize(
    ("method", "given_"),
    [
        ("tsv_c", {"scaling": 1.0}),
        ("tsv_c", {"matrices": "all_2d"}),
        ("tsv_c", {"rank": "numerical"}),
        ("iso_cts", {"rank": "numerical"}),
        ("star", {"scaling": 1.0}),
        ("knots_ta", {"keep": 0.2}),
        ("knots_ties", {"reduce": "sum"}),
        ("awd_ta", {"matrices": "all_2d"}),
        ("wudi", {"scaling": 1.0}),
    ],
)
def test_hyperparameters_of_other_methods_are_unknown(method, given_):
    refuse(method, next(iter(given_)), **given_)


@pytest.mark.parametrize(
    ("method", "name", "nearly", "meant"),
    [
        ("doge_ta", "projection", "ortogonal", "orthogonal"),
        ("doge_ta", "coefficients", "layers", "layer"),
        ("doge_ta", "rank", "numeric", "numerical"),
        ("awd_ta", "group", "tensors", "tensor"),
        ("awd_ta", "optimizer", "Adam", "adam"),
        ("iso_cts", "matrices", "all_2D", "all_2d"),
    ],
)
def test_a_nearly_right_word_is_suggested(method, name, nearly, meant):
    refuse(method, name, f"\\b{meant}\\b", **{name: nearly})


def test_a_nearly_right_name_is_suggested():
    refuse("doge_ta", "subspace_diviser", "subspace_divisor", subspace_diviser=6)
    refuse("iso_cts", "comon_fraction", "common_fraction", comon_fraction=0.5)


# ---------------------------------------------------------------- state dicts


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["nan", "inf", "missing", "extra", "shape", "dtype"])
def test_broken_experts(method, what):
    base, experts = small()
    expert = experts["task1"]
    if what in ("nan", "inf"):
        expert[KEY][-1, -1] = float(what)
    elif what == "missing":
        del expert[KEY]
    elif what == "extra":
        expert[KEY + "x"] = torch.zeros(2, 2)
    else:
        expert[KEY] = torch.zeros(3, 3) if what == "shape" else expert[KEY].double()
    refuse(method, "task1", re.escape(KEY), base=base, experts=experts)


@pytest.mark.parametrize("method", METHODS)
def test_broken_base(method):
    base, experts = small()
    base[KEY][0, 0] = math.nan
    refuse(method, "pretrained", re.escape(KEY), base=base, experts=experts)


@pytest.mark.parametrize("method", METHODS)
def test_non_finite_values_where_the_method_does_not_look(method):
    """A tensor that stays at the base is still read."""
    base, experts = small()
    experts["task0"]["vision_model.embeddings.class_embedding"][0] = math.inf
    refuse(method, "task0", "class_embedding", base=base, experts=experts)


@pytest.mark.parametrize("method", METHODS)
def test_no_experts(method):
    with pytest.raises(fbl.MergeError, match="expert"):
        fbl.merge(method, small()[0], {})


def test_tsv_c_needs_a_known_task():
    base, experts = small()
    merged = fbl.merge("tsv_c", base, experts)
    assert merged.per_task
    with pytest.raises(fbl.MergeError, match="task"):
        merged.state_dict()
    with pytest.raises(fbl.MergeError, match="task1"):
        merged.state_dict("tusk1")


def test_the_methods_are_listed():
    assert set(METHODS) <= set(fbl.methods())


def test_one_model_methods_ignore_the_task():
    base, experts = small()
    merged = fbl.merge("star", base, experts)
    assert not merged.per_task
    assert same_bits(merged.state_dict("task0"), merged.state_dict())


def test_large_finite_values_do_not_overflow_silently():
    """Squares of 1e25 leave the range of float32: an error or finite numbers, never NaN."""
    g = rng(0)
    base = {"encoder.weight": torch.zeros(6, 6), "b": torch.zeros(3)}
    experts = {
        f"t{i}": {"encoder.weight": 1e25 * torch.randn(6, 6, generator=g), "b": torch.zeros(3)} for i in range(2)
    }
    for method in METHODS:
        steps = {"steps": 3} if method in OPTIMISED else {}
        try:
            state = fbl.merge(method, base, experts, **steps).state_dict("t0")
        except fbl.MergeError:
            continue
        assert all(bool(torch.isfinite(v).all()) for v in state.values()), method
