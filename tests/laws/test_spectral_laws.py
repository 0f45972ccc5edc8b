"""Algebraic laws of TSV-C, Iso-CTS, STAR, KnOTS and the numerical-rank modes (docs/decisions.md, D20)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.oracles.data_free import array
from tests.oracles.spectral import cts_split
from tests.support.helpers import expert_of, experts_of, rng, same_bits, snapshot
from tests.support.spectral_cases import lora_experts
from tests.support.spectral_laws import DOUBLE, SEED, SHAPE, close, conditioned, draw, merge, rotations, spectrum, zero

pytestmark = pytest.mark.filterwarnings("ignore:.*numerical rank:UserWarning")  # rank="fixed" on deficient matrices

ONE_MODEL = ["iso_cts", "star", "knots_ta", "knots_ties"]
SCALED = st.sampled_from(["iso_cts", "knots_ta", "knots_ties"])
FRACTION = st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0])


# ---------------------------------------------------------------- laws of all or most of them


@given(seed=SEED, count=st.integers(2, 4), method=st.sampled_from(ONE_MODEL), data=st.data())
def test_permuting_the_tasks_changes_nothing(seed, count, method, data):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    order = data.draw(st.permutations(list(experts)))
    close(merge(method, base, {t: experts[t] for t in order}), merge(method, base, experts), 1e-6)


@given(seed=SEED, count=st.integers(1, 4), dtype=st.sampled_from([DOUBLE, torch.float32, torch.bfloat16]), method=SCALED)
def test_scale_zero_returns_the_base(seed, count, dtype, method):
    base = draw(seed, dtype)
    assert same_bits(merge(method, base, experts_of(base, count, seed % 1009), scaling=0), base)


@given(seed=SEED, count=st.integers(1, 4), scaling=st.floats(-3, 3), method=SCALED)
def test_update_is_linear_in_the_scale(seed, count, scaling, method):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    one, many = merge(method, base, experts, scaling=1.0), merge(method, base, experts, scaling=scaling)
    close(many, {n: base[n] + scaling * (one[n] - base[n]) for n in base}, 1e-9)


@given(seed=SEED, count=st.integers(1, 4), dtype=st.sampled_from([DOUBLE, torch.float32, torch.float16]))
def test_experts_equal_to_the_base_return_the_base(seed, count, dtype):
    base = draw(seed, dtype)
    experts = {f"t{i}": dict(base) for i in range(count)}
    for method in [*ONE_MODEL, "tsv_c"]:
        assert same_bits(merge(method, base, experts, "t0"), base), method
    for method in ("tsv_m", "iso_c"):
        assert same_bits(merge(method, base, experts, rank="numerical"), base), method


@given(seed=SEED, count=st.integers(1, 3), factor=st.sampled_from([1e-6, 0.5, 3.0, 1e8]), method=st.sampled_from(ONE_MODEL))
def test_positive_homogeneity(seed, count, factor, method):
    origin = {n: torch.zeros_like(v) for n, v in draw(seed).items()}
    experts = experts_of(origin, count, seed % 1009)
    scaled = {t: {n: factor * v for n, v in e.items()} for t, e in experts.items()}
    given_ = {"cutoff": 0} if "knots" in method else {}  # the cut-off is absolute
    a, b = merge(method, origin, experts, **given_), merge(method, origin, scaled, **given_)
    close(a, {n: v / factor for n, v in b.items()}, 1e-6)


@given(seed=SEED, count=st.integers(1, 3), shape=SHAPE, method=st.sampled_from(["iso_cts", "star", "knots_ta", "tsv_c"]))
def test_orthogonal_equivariance(seed, count, shape, method):
    base = {"w": torch.randn(shape, generator=rng(seed), dtype=DOUBLE)}
    experts = experts_of(base, count, seed % 1009)
    q, r = rotations(seed % 7919, *shape)
    turned = {t: {"w": q @ e["w"] @ r} for t, e in experts.items()}
    conditioned({t: {"w": e["w"] - base["w"]} for t, e in experts.items()})
    want = q @ merge(method, base, experts, "task0")["w"] @ r
    close({"w": want}, merge(method, {"w": q @ base["w"] @ r}, turned, "task0"), 1e-6)


@given(seed=SEED, count=st.integers(1, 3), shape=SHAPE)
def test_knots_ties_is_equivariant_to_rotations_of_the_output(seed, count, shape):
    base = zero(shape)
    experts = experts_of(base, count, seed % 1009)
    q, _ = rotations(seed % 7919, *shape)
    values = np.linalg.svd(np.concatenate([array(e["w"]) for e in experts.values()], axis=1), compute_uv=False)
    assume(len(values) == 1 or float(np.abs(np.diff(values)).min()) > 1e-3 * values[0])
    turned = {t: {"w": q @ e["w"]} for t, e in experts.items()}
    close({"w": q @ merge("knots_ties", base, experts)["w"]}, merge("knots_ties", base, turned), 1e-6)


@given(
    seed=SEED,
    count=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, DOUBLE]),
    method=st.sampled_from([*ONE_MODEL, "tsv_c"]),
)
def test_dtypes_and_inputs_are_kept(seed, count, dtype, method):
    base = draw(seed, dtype)
    experts = experts_of(base, count, seed % 1009)
    before = snapshot(base), {t: snapshot(e) for t, e in experts.items()}
    state = merge(method, base, experts, "task0")
    assert list(state) == list(base)
    assert all(state[n].dtype == dtype and state[n].shape == base[n].shape for n in base)
    assert all(bool(torch.isfinite(v).all()) for v in state.values())
    for value in state.values():
        value.zero_()
    assert same_bits(base, before[0])
    assert all(same_bits(experts[t], before[1][t]) for t in experts)


@given(
    seed=SEED,
    factor=st.sampled_from([1.0, -1.0, 1e-3]),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    method=st.sampled_from([*ONE_MODEL, "tsv_c"]),
)
def test_collinear_tasks(seed, factor, dtype, method):
    base = draw(seed, dtype)
    expert = expert_of(base, seed % 1009)
    experts = {"a": expert, "b": {n: (base[n] + factor * (v - base[n])).to(dtype) for n, v in expert.items()}}
    state = merge(method, base, experts, "b")
    assert all(bool(torch.isfinite(v).all()) for v in state.values())
    if factor == -1.0 and method in ("star", "knots_ta"):
        close(state, base, 1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("method", ["iso_cts", "star", "knots_ta", "tsv_c"])  # the threshold of KnOTS-TIES is global
def test_merging_one_tensor_at_a_time_equals_merging_them_together(method):
    base = draw(3)
    experts = experts_of(base)
    together = merge(method, base, experts, "task1")
    for name in base:
        alone = merge(method, {name: base[name]}, {t: {name: e[name]} for t, e in experts.items()}, "task1")
        assert torch.equal(alone[name], together[name]), name


@given(seed=SEED, count=st.integers(1, 4))
def test_what_is_no_matrix(seed, count):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    rest = [n for n, v in base.items() if v.ndim != 2]
    mean = merge("weight_averaging", base, experts)
    for method in ("iso_cts", "star"):
        close(merge(method, base, experts), mean, 1e-10, rest)
    for method in ("knots_ta", "knots_ties"):
        state = merge(method, base, experts)
        assert all(torch.equal(state[n], base[n]) for n in rest)
    for task, expert in experts.items():
        state = merge("tsv_c", base, experts, task)
        assert all(torch.equal(state[n], expert[n]) for n in rest)


# ---------------------------------------------------------------- TSV-C


@given(seed=SEED, count=st.integers(1, 5), shape=SHAPE, ratio=st.sampled_from([None, 0.2, 0.5, 1.0]))
def test_tsv_c_is_the_best_approximation_of_its_rank(seed, count, shape, ratio):
    experts = experts_of(zero(shape), count, seed % 1009)
    merged = fbl.merge("tsv_c", zero(shape), experts, rank_ratio=ratio)
    k = min(shape) // count if ratio is None else int(ratio * min(shape))
    for task, expert in experts.items():
        state = merged.state_dict(task)["w"]
        values = spectrum(expert["w"])
        assert np.isclose(float((expert["w"] - state).square().sum()), (values[k:] ** 2).sum(), rtol=1e-9, atol=1e-16)
        assert np.allclose(spectrum(state)[:k], values[:k], rtol=1e-9)


@given(seed=SEED, dtype=st.sampled_from([torch.float32, DOUBLE]))
def test_tsv_c_of_one_task_or_of_all_components_is_the_expert(seed, dtype):
    base = draw(seed, dtype)
    experts = experts_of(base, 3, seed % 1009)
    tolerance = 1e-9 if dtype == DOUBLE else 1e-6
    close(merge("tsv_c", base, {"only": experts["task0"]}, "only"), experts["task0"], tolerance)
    close(merge("tsv_c", base, experts, "task2", rank_ratio=1.0), experts["task2"], tolerance)


@given(seed=SEED, count=st.integers(2, 4), data=st.data())
def test_tsv_c_of_a_task_depends_on_the_others_by_number_only(seed, count, data):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    order = data.draw(st.permutations(list(experts)))
    changed = {t: experts[t] if t == "task1" else expert_of(base, seed % 499) for t in order}
    assert same_bits(merge("tsv_c", base, changed, "task1"), merge("tsv_c", base, experts, "task1"))


# ---------------------------------------------------------------- Iso-CTS


@given(seed=SEED, count=st.integers(1, 4), shape=SHAPE, fraction=FRACTION)
def test_iso_cts_is_isotropic(seed, count, shape, fraction):
    experts = experts_of(zero(shape), count, seed % 1009)
    conditioned(experts)
    values = spectrum(merge("iso_cts", zero(shape), experts, common_fraction=fraction)["w"])
    assert np.allclose(values, values.mean(), rtol=1e-6)


@given(seed=SEED, count=st.integers(1, 5), shape=SHAPE, fraction=FRACTION, scaling=st.sampled_from([1.0, 1.5]))
def test_iso_cts_without_task_directions_is_iso_c(seed, count, shape, fraction, scaling):
    base = draw(seed, shape=shape)
    experts = experts_of(base, count, seed % 1009)
    names = [n for n, v in base.items() if v.ndim != 2 or cts_split(min(v.shape), count, fraction)[1] == 0]
    a = merge("iso_cts", base, experts, common_fraction=fraction, scaling=scaling)
    close(a, merge("iso_c", base, experts, scaling=scaling), 1e-6, names)
    close(merge("iso_cts", base, experts, common_fraction=1), merge("iso_c", base, experts), 1e-6)


# ---------------------------------------------------------------- STAR


@given(seed=SEED, count=st.integers(1, 4), dtype=st.sampled_from([torch.float32, DOUBLE]))
def test_star_of_everything_is_the_average(seed, count, dtype):
    base = draw(seed, dtype)
    experts = experts_of(base, count, seed % 1009)
    tolerance = 1e-9 if dtype == DOUBLE else 1e-6
    close(merge("star", base, experts, eta=100), merge("weight_averaging", base, experts), tolerance)
    close(merge("star", base, {"only": experts["task0"]}, eta=100), experts["task0"], tolerance)


@given(seed=SEED, shape=SHAPE, low=st.floats(0.1, 100), high=st.floats(0.1, 100))
def test_star_keeps_the_nuclear_norm_and_its_rank_grows_with_eta(seed, shape, low, high):
    expert = expert_of(zero(shape), seed % 1009)
    total = spectrum(expert["w"]).sum()
    ranks = []
    for eta in sorted([low, high]):
        values = spectrum(merge("star", zero(shape), {"only": expert}, eta=eta)["w"])
        assert np.isclose(values.sum(), total, rtol=1e-9)
        ranks.append(int((values > 1e-9 * values[0]).sum()))
        share = np.cumsum(spectrum(expert["w"])) / total * 100
        assert ranks[-1] == len(share) or share[ranks[-1] - 1] >= eta - 1e-6
        assert ranks[-1] == 1 or share[ranks[-1] - 2] < eta + 1e-6
    assert ranks[0] <= ranks[1]


@given(seed=SEED, count=st.integers(1, 4), eta=st.floats(0.01, 100))
def test_star_leaves_rank_one_alone_and_averages_the_tasks(seed, count, eta):
    experts = lora_experts(zero((6, 5)), count, 1, seed % 1009)
    close(merge("star", zero((6, 5)), experts, eta=eta), {"w": sum(e["w"] for e in experts.values()) / count})
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    alone = [merge("star", base, {t: e}, eta=eta) for t, e in experts.items()]
    close(merge("star", base, experts, eta=eta), {n: sum(a[n] for a in alone) / count for n in base})
