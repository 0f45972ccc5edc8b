"""Laws of adaptive methods before their first step (docs/decisions.md, D20)."""

from __future__ import annotations

import pytest
import torch

import fusionbench_lite as fbl
from tests.laws.test_adapt_laws import ADAMERGING, ALL, DOUBLE, DTYPES, run
from tests.support.helpers import (
    PRECISION,
    Setting,
    check_passthrough,
    distance,
    setting,
    touched,
)

# ---------------------------------------------------------------- zero steps


@DTYPES
@pytest.mark.parametrize("method", ADAMERGING)
@pytest.mark.parametrize("scaling", [0.3, 0.0, 1.0, 0.77])
def test_zero_steps_of_adamerging_is_task_arithmetic(method, scaling, dtype):
    """To a few roundings: task arithmetic adds up the experts before it takes the pretrained weights off."""
    s = setting(dtype=dtype)
    static = fbl.merge("task_arithmetic", s.pretrained, s.experts, scaling=scaling).state_dict()
    state = run(method, s, 0, scaling=scaling).state_dict()
    assert list(state) == list(static)
    assert all(distance(state[name], static[name]) <= PRECISION[dtype] for name in touched(static))


def test_zero_steps_clamps_the_coefficients_of_adamerging():
    s = setting(dtype=DOUBLE)
    for given_, effective in (({"scaling": 1.7}, 1.0), ({"scaling": -1}, 0.0), ({"scaling": 1.7, "clamp": False}, 1.7)):
        static = fbl.merge("task_arithmetic", s.pretrained, s.experts, scaling=effective).state_dict()
        state = run("adamerging_layerwise", s, 0, **given_).state_dict()
        assert all(torch.allclose(state[n], static[n], atol=1e-12) for n in touched(static))


@DTYPES
@pytest.mark.parametrize(
    ("method", "static", "extra"),
    [
        ("adarank_ta", "task_arithmetic", {}),
        ("adarank_cart", "cart", {}),
        ("adarank_tsvm", "tsv_m", {"matrices": "attn_mlp"}),
    ],
)
def test_zero_steps_of_adarank_is_its_static_start(method, static, extra, dtype):
    s = setting(dtype=dtype, seed=4)
    want = fbl.merge(static, s.pretrained, s.experts, **extra).state_dict()
    got = run(method, s, 0)
    check_passthrough(got.state_dict(), s.pretrained)
    tolerance = 1e-10 if dtype == DOUBLE else 1e-5
    assert all(distance(got.state_dict()[n], want[n]) <= tolerance for n in touched(want))
    assert got.losses.shape == (0,)


@pytest.mark.parametrize("kind", ["zero", "rank one"])
def test_zero_steps_of_adarank_tsvm_is_tsv_m_when_a_task_has_fewer_components(kind):
    """Directions of a zero singular value are arbitrary; neither method may let them enter the whitening."""
    s = setting(dtype=DOUBLE)
    g = torch.Generator().manual_seed(5)
    for name, value in s.pretrained.items():
        if value.ndim == 2:
            a, b = (torch.randn(n, generator=g, dtype=DOUBLE) for n in value.shape)
            s.experts["task1"][name] = value + 0.1 * torch.outer(a, b) * (kind == "rank one")
    want = fbl.merge("tsv_m", s.pretrained, s.experts, matrices="attn_mlp").state_dict()
    got = run("adarank_tsvm", s, 0).state_dict()
    assert all(distance(got[n], want[n]) <= 1e-8 for n in touched(want))


@pytest.mark.parametrize("method", ["adarank_ta", "adarank_cart", "adarank_tsvm"])
@pytest.mark.parametrize("ratio", [0.25, 0.6, 1.0])
def test_number_of_bits_at_the_start(method, ratio):
    s = setting(dtype=DOUBLE)
    masks = run(method, s, 0, rank_ratio=ratio).masks
    matrices = [n for n, v in s.pretrained.items() if v.ndim == 2 and ("attn" in n or "mlp" in n)]
    assert set(masks) == set(matrices)
    for name, mask in masks.items():
        rank = min(s.pretrained[name].shape)
        assert mask.shape == (3, rank)
        assert torch.equal(mask, (torch.arange(rank) < int(ratio * rank)).expand(3, rank))


def test_default_ranks():
    s = setting(tasks=4, dtype=DOUBLE)
    for method, kept in (("adarank_ta", 8), ("adarank_cart", 1), ("adarank_tsvm", 2)):
        assert all(bool((mask.sum(1) == kept).all()) for mask in run(method, s, 0).masks.values()), method


@pytest.mark.parametrize("method", ALL)
def test_zero_steps_reads_no_batch(method):
    s = setting()
    got = run(method, Setting(s.model, s.pretrained, s.experts, s.heads, {t: [] for t in s.experts}), 0)
    assert all(bool((v == next(iter(got.coefficients.values()))[0]).all()) for v in got.coefficients.values())
