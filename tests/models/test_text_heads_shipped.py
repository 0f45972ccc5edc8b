"""Heads as shipped, and the order of their classes."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

from fusionbench_lite.errors import MergeWarning
from fusionbench_lite.models.text_heads import shipped
from tests.support.clip_models import input_refused
from tests.support.helpers import rng

# ---------------------------------------------------------------- heads as shipped


def unit(count=5, width=8, seed=0):
    return nn.functional.normalize(torch.randn(count, width, generator=rng(seed)), dim=1)


def test_shipped_heads_that_are_right():
    head = unit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shipped(100 * head, head) == pytest.approx(100, abs=1e-3)
        assert shipped(head, head) == 100
        assert shipped(100 * head, classes=5) == pytest.approx(100, abs=1e-3)
        assert shipped(99.998 * head) == pytest.approx(99.998, abs=1e-3)  # exp(4.6052) is not quite 100
        assert shipped((100 * head).half(), head) == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize(("change", "parts"), [
    (lambda w: w[:4], ["(4, 8)", "5"]), (lambda w: w[:, :6], ["(5, 6)", "(5, 8)"]), (lambda w: w[0], ["(8,)"]),
    (lambda w: w * torch.tensor([1.0, 1, 1.01, 1, 1])[:, None], ["norm 100 to 101"]), (lambda w: w / 3, ["33.3333"]),
    (lambda w: w * torch.inf, ["not finite"]), (lambda w: w * 0, ["norm 0 to 0"]),
])
def test_shipped_heads_that_are_wrong(change, parts):
    with input_refused("head_DTD.pt", *map(re.escape, parts)):
        shipped(change(100 * unit()), unit(), classes=5, what="head_DTD.pt")


def test_a_shipped_head_unlike_the_rebuilt_one_warns():
    with pytest.warns(MergeWarning, match=r"head_DTD.pt: row 0 .*0\.999"):
        shipped(100 * unit().roll(1, 0), unit(), what="head_DTD.pt")
    other = nn.functional.normalize(unit() + torch.tensor([0, 0, 0, 0.1, 0])[:, None] * unit(seed=1), dim=1)
    with pytest.warns(MergeWarning, match=r"row 3 .*cosine of 0\.99"):
        shipped(100 * other, unit())
    near = nn.functional.normalize(unit() + 0.001 * unit(seed=1), dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shipped(100 * near, unit())
