"""What AdaMerging++, AdaMerging on other starts, AdaRank's variants, doGe AM and AWD AM refuse, in one line."""

from __future__ import annotations

import math

import pytest
import torch

import fusionbench_lite as fbl
from tests.support.adapt_comparison import bad_cases, labelled, refuse, refuse_value, tower_setting
from tests.support.helpers import setting

PP = ["adamerging_pp_taskwise", "adamerging_pp_layerwise"]
ON = ["adamerging_tsvm", "adamerging_cart", "adamerging_iso_cts"]
RANK = ["adarank_ta", "adarank_cart", "adarank_tsvm", "adarank_iso_cts"]
ISO = ["adamerging_iso_cts", "adarank_iso_cts"]
ALL = [*PP, *ON, "adarank_iso_cts", "doge_am", "awd_am"]

BAD = [
    (ALL, "scaling", ["0.3", None, math.nan, math.inf]),
    (ALL, "lr", [0, -1e-3, "1e-3", None, math.nan]),
    ([*PP, "doge_am", "awd_am"], "clamp", ["yes", None, 2]),
    (["adamerging_tsvm", "adamerging_cart", "adarank_iso_cts"], "rank_ratio", [0, -0.1, 1.01, "0.5", math.nan]),
    ([*ON, "adarank_iso_cts", "doge_am"], "matrices", ["all", None]),
    (ISO, "common_fraction", [-0.1, 1.1, "0.8", None, math.nan]),
    (["adarank_iso_cts"], "temperature", [0, -1, None]),
    (["adarank_iso_cts"], "learn", ["lambda", None]),
    (["adarank_iso_cts"], "top_only", ["no", None]),
    (RANK, "objective", ["accuracy", None, ""]),
    (["adarank_tsvm"], "extra", ["all", None]),
    (["doge_am"], "eta", [0, -1, "1", math.inf]),
    (["doge_am"], "keep", [0, -0.1, 1.1, None]),
    (["doge_am"], "delta_steps", [-1, 2.5, None]),
    (["doge_am"], "delta_lr", [0, -1, "1"]),
    (["doge_am"], "subspace_divisor", [0, -1, 2.5, "6"]),
    (["doge_am"], "deltas", ["each", None]),
    (["doge_am"], "rank", ["exact", None]),
    (["awd_am"], "alpha", [-0.1, "1", math.nan]),
    (["awd_am"], "awd_lr", [0, -1, None]),
    (["awd_am"], "awd_steps", [-1, 2.5, None]),
    (["awd_am"], "group", ["layer", None]),
    (["awd_am"], "optimizer", ["sgd", None]),
]


@pytest.mark.parametrize(("method", "name", "value"), bad_cases(BAD))
def test_value_out_of_range(method, name, value):
    refuse_value(method, name, value)


@pytest.mark.parametrize("method", ALL)
def test_hyperparameters_of_other_methods(method):
    refuse("rank_ration|keeep|unknown|no hyperparameter", method=method, rank_ration=0.5)
    if method in PP:
        refuse("keep", method=method, keep=0.2)


@pytest.mark.parametrize("method", ALL)
def test_too_few_batches_and_missing_heads(method):
    s = tower_setting(steps=2)
    refuse("task", r"\b2\b", r"\b5\b", method=method, s=s, steps=5)
    del s.heads["task1"]
    refuse("task1", "head", method=method, s=s)


def test_no_matrix_for_doge():
    refuse("matrices", "encoder_linear", "attn_mlp", method="doge_am")


@pytest.mark.parametrize("method", RANK)
def test_cross_entropy_needs_labels(method):
    refuse("task0", "label", method=method, objective="cross_entropy")


def test_labels_that_do_not_fit():
    s = labelled(setting(steps=2))
    inputs, labels = s.batches["task1"][0]
    for wrong in (labels[:-1], labels.double(), labels + 100, labels - 100, [1, 2]):
        s.batches["task1"][0] = (inputs, wrong)
        refuse("task1", "label", method="adarank_cart", s=s, objective="cross_entropy")
    s.batches["task1"][0] = (torch.full_like(inputs, math.nan), labels)
    refuse("task1", "finite|nan", method="adarank_cart", s=s, objective="cross_entropy")


def test_entropy_takes_no_pairs():
    refuse("task0", method="adarank_ta", s=labelled(setting(steps=2)))


@pytest.mark.parametrize("method", ALL)
def test_registered(method):
    assert method in fbl.methods()
