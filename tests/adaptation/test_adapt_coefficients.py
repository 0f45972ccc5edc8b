"""AdaMerging++, AdaMerging on TSV-M, CART and Iso-CTS, AdaRank's variants, doGe AM and AWD AM against their oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fusionbench_lite as fbl
from tests.oracles import adaptive, coefficients, data_free, optimised, spectral
from tests.support.adapt_comparison import (
    DOUBLE,
    TOLERANCE,
    check_coefficients,
    check_encode,
    check_losses,
    check_masks,
    check_merged,
    identify,
    labelled,
    tower_setting,
)
from tests.support.helpers import setting

RANKS = {"ta": (0.3, 1.0), "cart": (2.3, 0.16), "tsvm": (1.0, None)}


def problems(method, s, **given):
    """The oracle's problem, or its two problems for Iso-CTS."""
    family, kind = method.split("_", 1)
    inputs = s.pretrained, s.experts
    if kind.startswith("pp_"):
        return coefficients.adamerging_pp(*inputs, kind.removeprefix("pp_").removesuffix("wise"), **given)
    if family in ("doge", "awd"):
        return {"doge": coefficients.doge_am, "awd": coefficients.awd_am}[family](*inputs, **given)
    given = {"learn": "coefficients", **given} if family == "adamerging" else given
    if kind == "iso_cts":
        return coefficients.iso_problems(*inputs, **given)
    extra = given.pop("extra", "raw")
    scaling, ratio = RANKS[kind]
    whole = adaptive.adarank(kind, *inputs, **{"scaling": scaling, "rank_ratio": ratio, **given})
    return coefficients.truncated_only(whole) if extra == "none" else whole


def oracle(method, s, steps, lr=1e-3, objective="entropy", **given):
    found = problems(method, s, **given)
    first = found[0] if isinstance(found, tuple) else found
    return first, coefficients.run(found, s.model, s.heads, s.batches, steps, lr, objective)


def compare(method, s, steps, tolerance, **given):
    problem, want = oracle(method, s, steps, **given)
    got = fbl.adapt(method, *s.arguments(), steps, **given)
    check_coefficients(got.coefficients, want.coefficients, len(s.experts), tolerance, problem.scaling, problem.clamp)
    check_masks(got.masks, want.masks if method.startswith("adarank") else {})
    check_losses(got.losses, want.losses, tolerance)
    check_merged(got, want.state, s, 50 * tolerance)
    check_encode(got, want.state, s, "task0", 100 * tolerance)
    return got, want


METHODS = [
    ("adamerging_pp_taskwise", {}),
    ("adamerging_pp_taskwise", {"clamp": False, "scaling": 0.5, "lr": 0.01}),
    ("adamerging_pp_layerwise", {}),
    ("adamerging_pp_layerwise", {"clamp": False, "scaling": 1.2, "lr": 0.01}),
    ("adamerging_pp_layerwise", {"scaling": 0.985, "lr": 0.01}),
    ("adamerging_tsvm", {}),
    ("adamerging_tsvm", {"rank_ratio": 0.5, "scaling": 0.7, "matrices": "all_2d"}),
    ("adamerging_cart", {}),
    ("adamerging_cart", {"rank_ratio": 0.6, "scaling": 0.5, "lr": 0.01}),
    ("adamerging_iso_cts", {}),
    ("adamerging_iso_cts", {"common_fraction": 0.3, "scaling": 1.5, "matrices": "all_2d", "lr": 0.01}),
    ("adarank_ta", {"objective": "cross_entropy"}),
    ("adarank_cart", {"objective": "cross_entropy", "learn": "masks", "rank_ratio": 0.5}),
    ("adarank_tsvm", {"objective": "cross_entropy", "rank_ratio": 0.5}),
    ("adarank_tsvm", {"extra": "none"}),
    ("adarank_tsvm", {"extra": "none", "rank_ratio": 0.5, "objective": "cross_entropy"}),
    ("adarank_tsvm", {"extra": "raw", "top_only": True}),
    ("adarank_iso_cts", {}),
    ("adarank_iso_cts", {"common_fraction": 0.4, "rank_ratio": 0.5, "temperature": 1.0}),
    ("adarank_iso_cts", {"common_fraction": 0.4, "rank_ratio": 0.5, "top_only": True, "learn": "masks"}),
    ("adarank_iso_cts", {"objective": "cross_entropy", "learn": "coefficients", "scaling": 1.4, "matrices": "all_2d"}),
    ("doge_am", {"delta_steps": 40}),
    ("doge_am", {"delta_steps": 40, "deltas": "per_task", "delta_lr": 1e-3}),
    ("doge_am", {"delta_steps": 10, "subspace_divisor": 6, "keep": 0.6, "eta": 0.15}),
    ("doge_am", {"delta_steps": 10, "scaling": 0.985, "lr": 0.01, "clamp": True}),
    ("doge_am", {"delta_steps": 10, "matrices": "all_2d", "rank": "numerical", "lr": 0.01}),
    ("awd_am", {"awd_steps": 20}),
    ("awd_am", {"awd_steps": 5, "scaling": 0.015, "lr": 0.01}),
    ("awd_am", {"awd_steps": 20, "group": "global", "clamp": False, "scaling": 0.5, "lr": 0.01}),
    ("awd_am", {"awd_steps": 10, "optimizer": "adam", "alpha": 0.5, "awd_lr": 0.003}),
]


def setting_of(method, given, **more):
    s = tower_setting(**more) if method == "doge_am" else setting(**more)
    return labelled(s) if given.get("objective") == "cross_entropy" else s


@pytest.mark.parametrize("case", METHODS, ids=identify)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])
def test_ten_steps(case, dtype):
    method, given = case
    compare(method, setting_of(method, given, dtype=dtype), 10, TOLERANCE[dtype], **given)


FEW = [
    ("adamerging_pp_layerwise", {}),
    ("adamerging_pp_taskwise", {}),
    ("adamerging_tsvm", {}),
    ("adamerging_cart", {"rank_ratio": 0.5}),
    ("adamerging_iso_cts", {"common_fraction": 0.5}),
    ("adarank_tsvm", {"extra": "none"}),
    ("adarank_iso_cts", {}),
    ("doge_am", {"delta_steps": 10, "deltas": "per_task", "subspace_divisor": 3}),
    ("doge_am", {"delta_steps": 10}),
    ("awd_am", {"awd_steps": 5}),
]


@pytest.mark.parametrize("case", FEW, ids=identify)
@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_other_task_counts(case, tasks):
    method, given = case[0], {"lr": 0.01, **case[1]}
    if tasks == 1 and "subspace_divisor" in given:
        given["subspace_divisor"] = 1  # the votes of one task are all equal: no part of their space is its leading part
    compare(method, setting_of(method, given, tasks=tasks, seed=2, steps=4, dtype=DOUBLE), 4, 1e-9, **given)


@pytest.mark.parametrize(
    "case",
    [
        ("adarank_iso_cts", {"common_fraction": 0.5, "rank_ratio": 0.6}),
        ("adarank_tsvm", {"extra": "none", "rank_ratio": 0.6}),
        ("adarank_ta", {"objective": "cross_entropy", "rank_ratio": 0.5, "learn": "masks"}),
    ],
    ids=identify,
)
def test_long_run_with_flipping_bits(case):
    method, given = case[0], {"lr": 0.02, **case[1]}
    s = setting_of(method, given, steps=40, seed=1, dtype=DOUBLE)
    got, _ = compare(method, s, 40, 1e-7, **given)
    start = fbl.adapt(method, *s.arguments(), 0, **given).masks
    assert sum(int((got.masks[n] != start[n]).sum()) for n in start) >= 10


@pytest.mark.parametrize("method", ["adamerging_pp_layerwise", "adamerging_cart", "adamerging_iso_cts", "awd_am"])
def test_the_derivative_with_respect_to_scaling(method):
    """dL/d scaling of the implementation's own losses is the sum of the oracle's coefficient gradients."""
    s, few = setting(steps=1, dtype=DOUBLE), {"awd_steps": 5} if method == "awd_am" else {}
    _, want = oracle(method, s, 1, scaling=0.4, **few)
    total = sum(float(g.sum()) for g in want.gradients[0].values())
    up, down = (float(fbl.adapt(method, *s.arguments(), 1, scaling=0.4 + h, **few).losses[0]) for h in (1e-5, -1e-5))
    assert abs(total) > 1e-3
    assert (up - down) / 2e-5 == pytest.approx(total, rel=1e-6)


# ---------------------------------------------------------------- the oracles themselves


def zero_steps(method, s, **given):
    return {n: v.numpy() for n, v in oracle(method, s, 0, **given)[1].state.items()}


def same(a, b):
    return set(a) == set(b) and all(np.allclose(a[n], b[n], atol=1e-12, rtol=0) for n in a)


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_oracles_start_at_the_static_methods(tasks):
    s = setting(tasks=tasks, dtype=DOUBLE)
    inputs = s.pretrained, s.experts
    assert same(zero_steps("adamerging_pp_layerwise", s), data_free.ties_merging(*inputs))
    assert same(zero_steps("adamerging_pp_taskwise", s, scaling=0.7), data_free.ties_merging(*inputs, scaling=0.7))
    assert same(zero_steps("awd_am", s, awd_steps=7), optimised.awd_ta(*inputs, steps=7))
    for fraction in (0.0, 0.3, 0.8, 1.0):
        static = spectral.iso_cts(*inputs, common_fraction=fraction, matrices="attn_mlp")
        assert same(zero_steps("adarank_iso_cts", s, common_fraction=fraction), static)
    for extra in ("raw", "none"):
        assert same(zero_steps("adarank_tsvm", s, extra=extra), data_free.tsv_m(*inputs, matrices="attn_mlp"))


def test_oracle_of_doge_am_has_the_updates_of_doge_ta():
    s = tower_setting(dtype=DOUBLE)
    given = {"matrices": "encoder_linear", "subspace_divisor": 6}
    static = optimised.doge_ta(s.pretrained, s.experts, steps=20, **given)
    updates = coefficients.doge_am(s.pretrained, s.experts, delta_steps=20, **given)
    for name, base in updates.origin.items():
        merged = base.numpy().copy()
        for tau, update in zip(data_free.task_vectors(s.pretrained, s.experts, name), updates.dense[name], strict=True):
            merged = merged + 0.07 / np.linalg.norm(tau) * update.numpy()
        assert np.allclose(merged, static[name], atol=1e-12), name


def test_deltas_of_all_tasks_coincide_where_the_gradients_are_large():
    """They are positive multiples of one matrix and Adam is scale-free but for its epsilon."""
    taus = [10 * np.random.default_rng(i).normal(size=(7, 5)) for i in range(3)]
    lambdas = [0.3 / (i + 1) for i in range(3)]
    projector = optimised.shared_projector(taus, "fixed", 3)
    each = coefficients.doge_deltas(taus, lambdas, projector, 30, 1e-3)
    one = optimised.doge_delta(taus, lambdas, projector, 30, 1e-3, "orthogonal", "row")[0]
    assert float(np.abs(one).max()) > 1e-3
    assert all(np.allclose(delta, one, atol=1e-7) for delta in each)


@pytest.mark.parametrize("case", [c for c in METHODS if "mask" not in str(c) and c[1].get("lr") is None], ids=identify)
def test_gradients_of_the_oracles(case):
    method, given = case
    s = setting_of(method, given, steps=1, dtype=DOUBLE)
    scaling = given.get("scaling", 0.45)
    _, want = oracle(method, s, 1, **{**given, "scaling": scaling})
    total = sum(float(g.sum()) for n, g in want.gradients[0].items() if n.startswith("coefficient"))
    up, down = (float(oracle(method, s, 1, **{**given, "scaling": scaling + h})[1].losses[0]) for h in (1e-5, -1e-5))
    assert (up - down) / 2e-5 == pytest.approx(total, rel=1e-6, abs=1e-9)
