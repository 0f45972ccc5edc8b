"""Algebraic laws of KnOTS and of the numerical-rank modes of TSV-M and Iso-C (docs/decisions.md, D16)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fusionbench_lite.weights.linalg import eigenbasis
from tests.support.helpers import expert_of, experts_of, rng
from tests.support.spectral_cases import lora_experts
from tests.support.spectral_laws import DOUBLE, SEED, SHAPE, close, draw, merge, rotations, spectrum, zero

pytestmark = pytest.mark.filterwarnings("ignore:.*numerical rank:UserWarning")  # rank="fixed" on deficient matrices


# ---------------------------------------------------------------- KnOTS


@given(seed=SEED, count=st.integers(1, 4), rank=st.sampled_from([0, 1, 2]), shape=SHAPE)
def test_knots_sum_is_task_arithmetic(seed, count, rank, shape):
    base = draw(seed, shape=shape)
    experts = lora_experts(base, count, rank, seed % 1009) if rank else experts_of(base, count, seed % 1009)
    matrices = [n for n, v in base.items() if v.ndim == 2]
    # What the cut-off drops is at most the cut-off.
    close(merge("knots_ta", base, experts), merge("task_arithmetic", base, experts, scaling=0.6), 1e-4, matrices)
    close(merge("knots_ta", base, experts, cutoff=1e-9), merge("task_arithmetic", base, experts, scaling=0.6), 1e-7, matrices)


@given(seed=SEED, shape=SHAPE)
def test_knots_ties_of_one_untrimmed_task_is_the_expert(seed, shape):
    base = zero(shape)
    expert = expert_of(base, seed % 1009)
    close(merge("knots_ties", base, {"only": expert}, keep=1, scaling=1, cutoff=0), expert)
    single = merge("knots_ties", base, {"only": expert}, cutoff=0)
    twins = merge("knots_ties", base, {"a": expert, "b": dict(expert)}, cutoff=0)
    if len(np.unique(np.round(spectrum(expert["w"]), 6))) == min(shape):
        close(twins, single, 1e-6)  # disjoint mean


@given(seed=SEED, count=st.integers(1, 3), cutoff=st.sampled_from([1e-5, 0.3]), method=st.sampled_from(["knots_ta", "knots_ties"]))
def test_knots_with_a_task_that_does_not_move(seed, count, cutoff, method):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    idle = {**experts, "idle": dict(base)}
    close(merge(method, base, idle, cutoff=cutoff), merge(method, base, experts, cutoff=cutoff), 1e-9)


@given(seed=SEED, count=st.integers(1, 3), keep=st.sampled_from([0.1, 0.2, 0.5]))
def test_a_matrix_that_never_moves_does_not_count_in_knots_ties(seed, count, keep):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    more = {"frozen": torch.randn(9, 8, generator=rng(seed), dtype=DOUBLE)}
    a = merge("knots_ties", {**base, **more}, {t: {**e, **more} for t, e in experts.items()}, keep=keep)
    assert torch.equal(a["frozen"], more["frozen"])
    close(a, merge("knots_ties", base, experts, keep=keep), 1e-9, list(base))


@given(seed=SEED, count=st.integers(1, 3), keep=st.sampled_from([0.1, 0.5, 1.0]))
def test_knots_ties_of_negated_tasks_is_negated(seed, count, keep):
    origin = {n: torch.zeros_like(v) for n, v in draw(seed).items()}
    experts = experts_of(origin, count, seed % 1009)
    negated = {t: {n: -v for n, v in e.items()} for t, e in experts.items()}
    a, b = merge("knots_ties", origin, experts, keep=keep), merge("knots_ties", origin, negated, keep=keep)
    close(a, {n: -v for n, v in b.items()}, 1e-9)


# ---------------------------------------------------------------- numerical rank


@given(seed=SEED, count=st.integers(1, 3), rank=st.integers(1, 2), shape=st.sampled_from([(8, 6), (6, 9)]))
def test_iso_with_the_numerical_rank_is_flat_on_the_range(seed, count, rank, shape):
    experts = lora_experts(zero(shape), count, rank, seed % 1009)
    total = sum(e["w"] for e in experts.values())
    values, r = spectrum(total), count * rank
    assume(values[r - 1] > 1e-3 * values[0])
    flat = merge("iso_c", zero(shape), experts, rank="numerical")["w"]
    assert np.allclose(spectrum(flat)[:r], spectrum(flat)[0], rtol=1e-8)
    assert np.allclose(spectrum(flat)[r:], 0, atol=1e-9 * values[0])
    close(merge("iso_c", zero(shape), {"once": {"w": flat}}, rank="numerical"), {"w": flat}, 1e-8)
    assert np.isclose(spectrum(flat).sum(), values.sum(), rtol=1e-8)


@pytest.mark.parametrize("method", ["knots_ta", "knots_ties"])
def test_knots_of_word_embeddings_has_no_matrix_of_the_side_of_the_vocabulary(method, monkeypatch):
    sides = []

    def watched(gram, what):
        sides.append(len(gram))
        return eigenbasis(gram, what)

    monkeypatch.setattr("fusionbench_lite.methods.knots.eigenbasis", watched)
    base = draw(0, shape=(500, 3))
    experts = experts_of(base, 2, 1)
    merged = merge(method, base, experts, cutoff=1e-9)
    assert max(sides) <= 6
    if method == "knots_ta":
        matrices = [name for name, tensor in base.items() if tensor.ndim == 2]
        close(merged, merge("task_arithmetic", base, experts, scaling=0.6), 1e-9, matrices)


@given(seed=SEED, rank=st.integers(1, 2), method=st.sampled_from(["tsv_m", "iso_c"]), shape=st.sampled_from([(8, 6), (6, 9)]))
def test_numerical_rank_is_orthogonally_equivariant_and_homogeneous(seed, rank, method, shape):
    experts = lora_experts(zero(shape), 2, rank, seed % 1009)
    q, r = rotations(seed % 7919, *shape)
    for matrix, k in [(sum(e["w"] for e in experts.values()), 2 * rank), *[(e["w"], rank) for e in experts.values()]]:
        values = spectrum(matrix)
        assume(values[k - 1] > 1e-3 * values[0])
    want = merge(method, zero(shape), experts, rank="numerical")["w"]
    turned = {t: {"w": q @ e["w"] @ r * 7.0} for t, e in experts.items()}
    close(merge(method, zero(shape), turned, rank="numerical"), {"w": 7.0 * q @ want @ r}, 1e-6)


@given(seed=SEED, rank=st.integers(1, 3))
def test_tsv_with_the_numerical_rank_returns_orthogonal_tasks(seed, rank):
    """A task of rank r is kept whole, whatever the number of the others."""
    q, r = rotations(seed % 7919, 8, 10)
    experts = {}
    for t in range(2):
        core = torch.zeros(8, 10, dtype=DOUBLE)
        core[4 * t : 4 * t + 4, 5 * t : 5 * t + 5] = lora_experts(zero((4, 5)), 1, rank, seed % 1009 + t)["task0"]["w"]
        experts[f"t{t}"] = {"w": q @ core @ r}
    state = merge("tsv_m", zero((8, 10)), experts, rank="numerical")
    close(state, {"w": sum(e["w"] for e in experts.values())}, 1e-8)
    alone = merge("tsv_m", zero((8, 10)), {"t0": experts["t0"]}, rank="numerical")
    close(alone, experts["t0"], 1e-8)
