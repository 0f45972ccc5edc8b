"""What AdaMerging++, AdaMerging on other starts, AdaRank's variants, doGe AM and AWD AM refuse, in one line."""

from __future__ import annotations

import math

import pytest
import torch

import fusionbench_lite as fbl
from tests.support.adapt_comparison import labelled, refuse, refuse_value, tower_setting
from tests.support.helpers import setting

PP = ["adamerging_pp_taskwise", "adamerging_pp_layerwise"]
ON = ["adamerging_tsvm", "adamerging_cart", "adamerging_iso_cts"]
RANK = ["adarank_ta", "adarank_cart", "adarank_tsvm", "adarank_iso_cts"]
ISO = ["adamerging_iso_cts", "adarank_iso_cts"]
ALL = [*PP, *ON, "adarank_iso_cts", "doge_am", "awd_am"]

BAD = {  # every range is tried out in tests/planning/test_hyperparameter_ranges.py: here, that an adaptation asks for it
    "adamerging_pp_taskwise": ("clamp", "yes"), "adamerging_pp_layerwise": ("lr", 0), "adamerging_tsvm": ("rank_ratio", 1.01),
    "adamerging_cart": ("matrices", "all"), "adamerging_iso_cts": ("common_fraction", -0.1), "adarank_iso_cts": ("temperature", 0),
    "adarank_ta": ("objective", "accuracy"), "adarank_tsvm": ("extra", None), "doge_am": ("subspace_divisor", 2.5),
    "awd_am": ("awd_lr", math.nan),
}


@pytest.mark.parametrize("method", BAD)
def test_value_out_of_range(method):
    refuse_value(method, *BAD[method])


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
