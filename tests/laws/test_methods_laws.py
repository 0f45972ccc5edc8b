"""Algebraic laws of the data-free methods (docs/decisions.md, D20)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.oracles.data_free import array, is_factorised
from tests.support.helpers import distance, expert_of, experts_of, grid_state, rng, same_bits, snapshot, touched

SEED = st.integers(0, 2**31)
METHODS = ["weight_averaging", "task_arithmetic", "ties_merging", "tsv_m", "cart", "iso_c"]
SCALED = [m for m in METHODS if m != "weight_averaging"]
DOUBLE = torch.float64


def draw(seed: int, dtype: torch.dtype = DOUBLE) -> dict[str, torch.Tensor]:
    g = rng(seed)
    shapes = {"attn.weight": (6, 6), "mlp.weight": (9, 5), "proj": (4, 7), "ln.weight": (6,), "conv": (3, 2, 2, 2)}
    return {n: torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for n, s in shapes.items()}


def merge(method, base, experts, **given_):
    return fbl.merge(method, base, experts, **given_).state_dict()


def close(state, other, tolerance=1e-9, names=None):
    for name in names or touched(state):
        error = distance(state[name], array(other[name]))
        assert error <= tolerance, f"{name}: {error:.2e}"


def update(state, base):
    return {n: state[n] - base[n] for n in base}


@given(seed=SEED, count=st.integers(2, 5), method=st.sampled_from(METHODS), data=st.data())
def test_permuting_the_tasks_changes_nothing(seed, count, method, data):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    order = data.draw(st.permutations(list(experts)))
    close(merge(method, base, {t: experts[t] for t in order}), merge(method, base, experts), 1e-6)


@given(seed=SEED, count=st.integers(1, 4), dtype=st.sampled_from([DOUBLE, torch.float32, torch.bfloat16]))
def test_scale_zero_returns_the_origin(seed, count, dtype):
    base = draw(seed, dtype)
    experts = experts_of(base, count, seed % 1009)
    for method in SCALED:
        if method != "cart":
            state = merge(method, base, experts, scaling=0)
            assert all(torch.equal(state[n], base[n]) for n in base), method
    mean = merge("weight_averaging", base, experts)
    close(merge("cart", base, experts, scaling=0.0), mean, 1e-2 if dtype == torch.bfloat16 else 1e-6)


@given(seed=SEED)
def test_one_expert_with_a_neutral_scale_is_returned(seed):
    base = draw(seed)
    expert = expert_of(base, seed % 1009)
    neutral = [
        ("weight_averaging", {}),
        ("task_arithmetic", {"scaling": 1}),
        ("ties_merging", {"keep": 1.0, "scaling": 1.0}),
        ("ties_merging", {"keep": 1.0, "scaling": 1.0, "reduce": "mean"}),
        ("ties_merging", {"keep": 1.0, "scaling": 1.0, "reduce": "max"}),
        ("tsv_m", {}),
        ("cart", {}),
    ]
    for method, given_ in neutral:
        close(merge(method, base, {"only": expert}, **given_), expert, 1e-9)


@given(seed=SEED, count=st.integers(2, 4), factor=st.sampled_from([1e-18, 0.01, 0.5, 3.0, 1e12]))
def test_positive_homogeneity(seed, count, factor):
    base = draw(seed)
    zero = {n: torch.zeros_like(v) for n, v in base.items()}
    experts = experts_of(zero, count, seed % 1009)
    scaled = {t: {n: factor * v for n, v in e.items()} for t, e in experts.items()}
    for method in METHODS:
        a, b = merge(method, zero, experts), merge(method, zero, scaled)
        close(a, {n: v / factor for n, v in b.items()}, 1e-6)


@given(seed=SEED, count=st.integers(2, 4), scaling=st.floats(-3, 3))
def test_update_is_linear_in_the_scale(seed, count, scaling):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    for method in SCALED:
        origin = merge(method, base, experts, scaling=0)
        one, many = merge(method, base, experts, scaling=1.0), merge(method, base, experts, scaling=scaling)
        close(many, {n: origin[n] + scaling * (one[n] - origin[n]) for n in base}, 1e-9)


@given(seed=SEED)
def test_arithmetic_is_linear_in_every_task_vector(seed):
    base = draw(seed)
    experts = experts_of(base, 3, seed % 1009)
    parts = [update(merge("task_arithmetic", base, {t: e}), base) for t, e in experts.items()]
    close(merge("task_arithmetic", base, experts), {n: base[n] + sum(p[n] for p in parts) for n in base})


@given(seed=SEED, count=st.integers(2, 5), dtype=st.sampled_from([DOUBLE, torch.float32]))
def test_average_lies_in_the_hull(seed, count, dtype):
    base = draw(seed, dtype)
    experts = experts_of(base, count, seed % 1009)
    state = merge("weight_averaging", base, experts)
    for name in base:
        stack = torch.stack([e[name] for e in experts.values()])
        slack = 1e-6 * float(stack.abs().max())
        assert bool((state[name] >= stack.amin(0) - slack).all())
        assert bool((state[name] <= stack.amax(0) + slack).all())


@given(seed=SEED, count=st.integers(1, 4))
def test_a_zero_task_vector_adds_nothing(seed, count):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    with_zero = {**experts, "idle": dict(base)}
    close(merge("task_arithmetic", base, with_zero), merge("task_arithmetic", base, experts), 1e-12)
    for reduce in ("sum", "mean", "max"):
        a, b = (merge("ties_merging", base, e, reduce=reduce) for e in (with_zero, experts))
        close(a, b, 1e-12)
    matrices = [n for n, v in base.items() if v.ndim == 2]
    close(merge("iso_c", base, with_zero), merge("iso_c", base, experts), 1e-6, matrices)
    a, b = (merge("tsv_m", base, e, rank_ratio=0.25) for e in (with_zero, experts))
    close(a, b, 1e-6, matrices)
    for method in METHODS:
        assert all(bool(torch.isfinite(v).all()) for v in merge(method, base, with_zero).values())


@given(seed=SEED, count=st.integers(1, 4), dtype=st.sampled_from([DOUBLE, torch.float32, torch.float16]))
def test_experts_equal_to_the_base_return_the_base(seed, count, dtype):
    base = draw(seed, dtype)
    experts = {f"t{i}": dict(base) for i in range(count)}
    for method in METHODS:
        close(merge(method, base, experts), base, 1e-3 if dtype == torch.float16 else 1e-6)


@given(seed=SEED, count=st.integers(1, 4))
def test_identical_experts(seed, count):
    base = draw(seed)
    expert = expert_of(base, seed % 1009)
    experts = {f"t{i}": dict(expert) for i in range(count)}
    tau = update(expert, base)
    close(merge("weight_averaging", base, experts), expert)
    close(merge("cart", base, experts), expert)
    close(merge("task_arithmetic", base, experts), {n: base[n] + 0.3 * count * tau[n] for n in base})
    single = update(merge("ties_merging", base, {"t0": expert}, scaling=1.0), base)
    for reduce, factor in (("mean", 1), ("max", 1), ("sum", count)):
        state = merge("ties_merging", base, experts, scaling=1.0, reduce=reduce)
        close(state, {n: base[n] + factor * single[n] for n in base})


@given(seed=SEED, count=st.integers(1, 5), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_ties_support_and_signs(seed, count, dtype):
    shapes = {"w": (5, 8), "b": (9,)}
    base = grid_state(seed, shapes, dtype)
    experts = {f"t{i}": grid_state(seed + 1 + i, shapes, dtype) for i in range(count)}
    mean, total, top = (
        update(merge("ties_merging", base, experts, scaling=1.0, reduce=r), base) for r in ("mean", "sum", "max")
    )
    for name in shapes:
        taus = torch.stack([e[name] - base[name] for e in experts.values()])
        assert bool((mean[name].abs() <= taus.abs().amax(0) + 1e-6).all())
        assert bool((mean[name].abs() <= total[name].abs() + 1e-6).all())
        assert bool((torch.sign(mean[name]) == torch.sign(total[name])).all())
        assert bool((top[name].abs() <= taus.abs().amax(0) + 1e-6).all())


@given(seed=SEED, count=st.integers(1, 4))
def test_ties_of_negated_tasks_is_negated(seed, count):
    zero = {n: torch.zeros_like(v) for n, v in draw(seed).items()}
    experts = experts_of(zero, count, seed % 1009)
    negated = {t: {n: -v for n, v in e.items()} for t, e in experts.items()}
    a, b = merge("ties_merging", zero, experts), merge("ties_merging", zero, negated)
    assert all(torch.equal(a[n], -b[n]) for n in zero)


@given(seed=SEED, keep=st.floats(0.01, 0.99))
def test_ties_keeps_the_floor_plus_one(seed, keep):
    base = draw(seed)
    expert = expert_of(base, seed % 1009)
    state = merge("ties_merging", base, {"only": expert}, keep=keep, scaling=1.0)
    d = sum(v.numel() for v in base.values())
    assert sum(int((state[n] != base[n]).sum()) for n in base) == int(keep * d) + 1


FLOATS = [torch.float32, torch.float16, torch.bfloat16, DOUBLE]


@given(seed=SEED, count=st.integers(1, 4), dtype=st.sampled_from(FLOATS))
def test_dtypes_and_inputs_are_kept(seed, count, dtype):
    base = draw(seed, dtype)
    experts = experts_of(base, count, seed % 1009)
    before = snapshot(base), {t: snapshot(e) for t, e in experts.items()}
    for method in METHODS:
        state = merge(method, base, experts)
        assert list(state) == list(base)
        assert all(state[n].dtype == dtype and state[n].shape == base[n].shape for n in base)
    assert same_bits(base, before[0])
    assert all(same_bits(experts[t], before[1][t]) for t in experts)


@given(seed=SEED, count=st.integers(2, 4))
def test_everything_but_the_matrices_is_averaged_by_the_spectral_methods(seed, count):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    mean = merge("weight_averaging", base, experts)
    for method, policy in (("tsv_m", "all_2d"), ("tsv_m", "attn_mlp"), ("iso_c", "all_2d"), ("cart", "attn_mlp")):
        rest = [n for n, v in base.items() if not is_factorised(n, tuple(v.shape), policy)]
        assert rest
        close(merge(method, base, experts, matrices=policy), mean, 1e-10, rest)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ties_merging"])  # the TIES threshold is global
def test_merging_one_tensor_at_a_time_equals_merging_them_together(method):
    base = draw(3)
    experts = experts_of(base)
    together = merge(method, base, experts)
    for name in base:
        alone = merge(method, {name: base[name]}, {t: {name: e[name]} for t, e in experts.items()})
        assert torch.equal(alone[name], together[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_the_empty_rest_passes_through(method):
    base = {"n": torch.zeros(0, 4), "i": torch.arange(3), "f": torch.tensor([True, False])}
    experts = {"a": dict(base), "b": dict(base)}
    assert same_bits(merge(method, base, experts), base)
