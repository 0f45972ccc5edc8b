"""Elementwise methods against their oracles where entries tie, vanish or cancel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.oracles import elementwise as oracle
from tests.oracles.test_elementwise_against_oracles import check
from tests.support.helpers import PRECISION, clip_state, grid_state, rng, touched
from tests.support.key_sets import KEY_SETS, gram_of, tied_experts_of
from tests.support.merging import merge

# ---------------------------------------------------------------- ties, zeros and cancellations

SHAPES = {"b": (7,), "a.weight": (5, 9), "d": (2, 3, 4), "e": (1,), "f": (6, 6), "s": (), "z": (0, 4)}
EXACT = [
    ("tall_masks", {"threshold": st.sampled_from([0, 0.25, 0.5, 1, 2]), "base": st.sampled_from(["ta", "ties"])}),
    ("consensus_ta", {"threshold": st.sampled_from([0, 0.25, 0.5, 1]), "min_tasks": st.integers(0, 4)}),
    ("consensus_ties", {"threshold": st.sampled_from([0, 0.5, 1.0]), "virtual_zeros": st.sampled_from([0, 40, 500])}),
    ("emr_merging", {"rescale": st.sampled_from(["tensor_mean", "global"])}),
    ("breadcrumbs", {
        "keep": st.sampled_from([0.05, 0.15, 0.5, 1.0]), "outliers": st.sampled_from([0, 0.006, 0.12, 0.5, 0.99]),
        "granularity": st.sampled_from(["row", "tensor"]),
    }),
    ("magmax", {"scaling": st.sampled_from([0, 0.5, 1.0])}),
    ("metagpt", {}),
    ("model_stock", {"average": st.just("cosines"), "granularity": st.sampled_from(["tensor", "row"])}),
]  # fmt: skip


@pytest.mark.parametrize("case", EXACT, ids=[m for m, _ in EXACT])
@given(data=st.data(), seed=st.integers(0, 2**31), count=st.integers(1, 5), near=st.booleans())
def test_equal_magnitudes_zeros_and_cancellations(case, data, seed, count, near):
    method, options = case
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    base = grid_state(seed, SHAPES, dtype)
    experts = {f"t{i}": grid_state(seed + 1 + i, SHAPES, dtype) for i in range(count)}
    if near:  # many coordinates where some expert did not move
        kept = grid_state(seed + 99, SHAPES, torch.float64)
        for expert in experts.values():
            expert |= {n: torch.where(kept[n] > 0, v, base[n]) for n, v in expert.items()}
    for state in (base, *experts.values()):  # an only entry must not cancel against its base: nothing is left to compare with
        for name in ("e", "s"):
            state[name] += 8
    check(method, base, experts, {k: data.draw(v) for k, v in options.items()})


@given(
    seed=st.integers(0, 2**31), count=st.integers(1, 4), variant=st.sampled_from("ABC"), dtype=st.sampled_from(list(PRECISION)),
    ratio=st.sampled_from([0.01, 0.05, 0.5, 1]), virtual_zeros=st.sampled_from([0, 1, 90, 400]),
)  # fmt: skip
def test_pcb_with_equal_magnitudes(seed, count, variant, dtype, ratio, virtual_zeros):
    """An entry that ties with the threshold has weight 0 or one rounding of 1, and 1e-16 / 1e-12 of its value counts."""
    base = {n: torch.zeros(s, dtype=dtype) for n, s in SHAPES.items()}
    experts = {f"t{i}": grid_state(seed + 1 + i, SHAPES, dtype) for i in range(count)}
    options = {"variant": variant, "ratio": ratio, "virtual_zeros": virtual_zeros, "scaling": 1.0}
    state, expected = merge("pcb_merging", base, experts, **options), oracle.pcb_merging(base, experts, **options)
    for name in touched(base):
        error = np.abs(state[name].double().numpy() - expected[name])
        assert error.max() <= 2e-3, name


@given(seed=st.integers(0, 2**31), count=st.integers(1, 5), dtype=st.sampled_from(list(PRECISION)))
def test_model_stock_of_single_entries(seed, count, dtype):
    """Rows of one entry are parallel, opposite or zero, so 1 + (N - 1) cosθ is often 0, which has no ratio."""
    base = grid_state(seed, {"b": (40,), "c": (9, 1)}, dtype)
    experts = {f"t{i}": grid_state(seed + 1 + i, {"b": (40,), "c": (9, 1)}, dtype) for i in range(count)}
    check("model_stock", base, experts, {"average": "angles", "granularity": "row"})


@given(seed=st.integers(0, 2**31), count=st.integers(1, 4), epsilon=st.sampled_from([0, 1e-6, 0.5]), normalize=st.booleans())
def test_fisher_with_zeros_in_the_fisher(seed, count, epsilon, normalize):
    base = grid_state(seed, SHAPES, torch.float64)
    experts = {f"t{i}": grid_state(seed + 1 + i, SHAPES, torch.float64) for i in range(count)}
    fisher = {t: {n: v.clamp_min(0) * 2.0**i for n, v in grid_state(seed + 50 + i, SHAPES).items()} for i, t in enumerate(experts)}
    if seed % 3 == 0:
        fisher["t0"] = {n: torch.zeros_like(v) for n, v in fisher["t0"].items()}
    check("fisher_merging", base, experts, {"fisher": fisher, "epsilon": epsilon, "normalize": normalize})


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("keys", list(KEY_SETS))
@pytest.mark.parametrize("count", [1, 2])
def test_regmean_with_singular_sums(rank, keys, count):
    """Fewer inputs than dimensions: the pseudo-inverse leaves the mean in the directions that no task has seen."""
    base = KEY_SETS[keys](4, torch.float64)
    experts = tied_experts_of(base, count)
    gram = gram_of(base, list(experts), rank=rank)
    # The smallest non-zero eigenvalue is within 1e-4 of the largest, which costs four digits.
    check("regmean", base, experts, {"gram": gram, "off_diagonal": 1.0}, tolerance=1e-8)


def test_regmean_averages_what_is_not_listed():
    base = clip_state(4, torch.float64)
    experts = tied_experts_of(base)
    for names in ([], ["visual.proj"], [n for n, v in base.items() if n.endswith("weight") and v.ndim == 2]):
        gram = gram_of(base, list(experts), names) if names else {t: {} for t in experts}
        check("regmean", base, experts, {"gram": gram})


@pytest.mark.parametrize("a", [0.999, 0.9996, 1.0, -0.999, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_slerp_around_the_straight_line(a, dtype):
    """Either side of |cosΩ| = 0.9995; at -0.999 the factors are about 22, so float32 work must not take the angle."""
    first = torch.zeros(2, 4, dtype=dtype)
    first[0, 0] = 2.0
    second = torch.zeros(2, 4, dtype=dtype)
    second[0, 0], second[1, 1] = 3 * a, 3 * (1 - a * a) ** 0.5
    base = {"w": torch.ones(2, 4, dtype=dtype)}
    experts = {"a": {"w": first}, "b": {"w": second}}
    for t in (0, 0.3, 0.5, 1):
        check("slerp", base, experts, {"t": t})
        shifted = {task: {"w": e["w"] + base["w"]} for task, e in experts.items()}
        check("nuslerp", {"w": base["w"] * 0}, experts, {"t": t})
        assert torch.isfinite(fbl.merge("nuslerp", base, shifted, t=t).state_dict()["w"]).all()


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-7])
def test_interpolating_with_a_tiny_vector(method, size):
    """A norm of at most 1e-8 is not normalised, so the angle to it is a right one."""
    base = {"w": torch.zeros(5, dtype=torch.float64)}
    a, b = torch.randn(2, 5, generator=rng(3), dtype=torch.float64)
    check(method, base, {"a": {"w": a}, "b": {"w": size * b}}, {"t": 0.4})
    check(method, base, {"a": {"w": size * a}, "b": {"w": size * b}}, {"t": 0.4})
