"""Refusals of adapters and routers: one line that names the task, the key, both values and the hyperparameter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fusionbench_lite as fbl
from tests.support.adapter_checks import cases, check_out_of_range, check_stream_faults, refuse
from tests.support.helpers import snapshot
from tests.support.small_models import FlatPerceptron, NoBlocks, small_setting

DOUBLE = torch.float64
SURGERY = ("surgery", "surgery_v2", "prob_surgery")
ALL = (*SURGERY, "metamerging", "wemoe", "twin_merging")

BAD = {  # every range is tried out in tests/planning/test_hyperparameter_ranges.py: here, that an adaptation asks for it
    (*SURGERY, "metamerging"): {"base": ["tall_masks", "individual", "adamerging_layerwise", "task_arithmetik", 3]},
    ("surgery",): {"rank": [0], "moments": ["both"]},
    ("surgery_v2",): {"lr": [0]},
    ("prob_surgery",): {"kl": [-1], "hidden": [1.5]},
    ("metamerging",): {"inner_lr": [-0.1], "adapter_steps": [-1, 3, 0.5], "order": ["third"]},
    ("wemoe",): {"scaling": [math.inf], "routing": ["token"]},
    ("twin_merging",): {"rank_ratio": [1.01], "dropout": [1.0], "seed": ["0"]},
}
GOOD = {
    ALL: {"lr": [1e-12, np.float64(1e-3)], "seed": [0, 7]},
    SURGERY: {"base": ["weight_averaging", "ties_merging", "pretrained"]},
    ("surgery", "surgery_v2", "metamerging"): {"rank": [1, 100]},
    ("prob_surgery",): {"hidden": [1], "kl": [0, 10]},
    ("metamerging",): {"raw": [0, -5], "inner_steps": [0], "inner_lr": [0, 1], "adapter_steps": [0, 2, None]},
    ("wemoe",): {"scaling": [0, 1, -1]},
    ("twin_merging",): {"scaling": [0, 1], "rank_ratio": [1e-3, 1], "dropout": [0, 0.99]},
}


@pytest.mark.parametrize(("method", "name", "value"), cases(BAD))
def test_value_out_of_range(method, name, value):
    s = small_setting(NoBlocks() if method == "wemoe" else None, steps=4)
    if name == "base":
        refuse(method, s, str(value), base=value)
    else:
        check_out_of_range(method, s, name, value)


@pytest.mark.parametrize(("method", "name", "value"), cases(GOOD))
def test_value_in_range(method, name, value):
    s = small_setting(steps=4)
    got = fbl.adapt(method, *s.arguments(), 2, **{name: value})
    assert all(bool(torch.isfinite(v).all()) for v in (got.encode(s.batches["task0"][0], "task0"), *got.learned.values()))


@pytest.mark.parametrize("method", ALL)
def test_bad_streams(method):
    options = {"inner_steps": 0} if method == "metamerging" else {}
    check_stream_faults(method, small_setting(steps=7), 7, **options)


def test_metamerging_counts_the_batches_of_inner_steps():
    """Two meta steps of three batches and two steps of the adapters need eight."""
    s = small_setting(steps=8)
    assert len(fbl.adapt("metamerging", *s.arguments(), 4, inner_steps=2).losses) == 4
    s.batches["task1"].pop()
    refuse("metamerging", s, "task1", r"\b7\b", r"\b8\b", steps=4, inner_steps=2)


@pytest.mark.parametrize("method", [*SURGERY, "metamerging"])
def test_bad_merged_weights(method):
    s = small_setting(steps=2)
    base = fbl.merge("task_arithmetic", s.pretrained, s.experts).state_dict()
    for change, parts in (
        (lambda m: m.pop("proj"), ["proj"]),
        (lambda m: m.update(surplus=torch.zeros(2)), ["surplus"]),
        (lambda m: m.update(proj=torch.zeros(6, 4, dtype=DOUBLE)), ["proj", r"6,\s*4", r"6,\s*5"]),
        (lambda m: m["proj"].view(-1)[0].fill_(math.nan), ["proj", "nan|inf|finite"]),
    ):
        merged = snapshot(base)
        change(merged)
        refuse(method, s, *parts, merged=merged)


@pytest.mark.parametrize(("method", "options"), [("surgery_v2", {}), ("metamerging", {})])
def test_adapters_after_blocks_need_blocks(method, options):
    refuse(method, small_setting(NoBlocks(), steps=4), "block", "NoBlocks", **options)


@pytest.mark.parametrize("routing", ["example", "batch"])
def test_routing_of_perceptrons_needs_perceptrons(routing):
    refuse("wemoe", small_setting(FlatPerceptron(), shape=(3,), steps=2), "mlp", "FlatPerceptron", routing=routing)


@pytest.mark.parametrize("method", ALL)
def test_options_of_other_methods(method):
    refuse(method, small_setting(steps=2), "temperature", temperature=3)
