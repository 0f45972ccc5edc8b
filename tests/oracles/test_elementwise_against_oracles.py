"""Elementwise, interpolating and data-light methods against their float64 oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.oracles import elementwise as oracle
from tests.oracles.elementwise import ORACLES, PER_TASK_ORACLES
from tests.support.helpers import PRECISION, check_passthrough, check_rounded, check_state, clip_state, grid_state, rng, touched
from tests.support.key_sets import KEY_SETS, gram_of, loosened, t5_state, tied, tied_experts_of
from tests.support.merging import PAIRS, arguments, merge, models


def per_task_threshold(tasks):
    return {t: 0.25 * (i + 1) for i, t in enumerate(tasks)}


CASES = [
    ("tall_masks", {}),
    ("tall_masks", {"threshold": 0}),
    ("tall_masks", {"threshold": per_task_threshold}),
    ("tall_masks", {"base": "ties", "threshold": 0.5, "virtual_zeros": 200}),
    ("consensus_ta", {}),
    ("consensus_ta", {"threshold": per_task_threshold, "min_tasks": 1, "scaling": 1.0}),
    ("consensus_ta", {"min_tasks": 0}),
    ("consensus_ties", {"threshold": 0.5}),
    ("consensus_ties", {"min_tasks": 1, "scaling": -0.5, "virtual_zeros": 150}),
    ("emr_merging", {}),
    ("emr_merging", {"rescale": "global"}),
    ("pcb_merging", {}),
    ("pcb_merging", {"variant": "A", "ratio": 0.2}),
    ("pcb_merging", {"variant": "C", "ratio": 0.1, "scaling": 0.7}),
    ("pcb_merging", {"ratio": 1, "virtual_zeros": 120}),
    ("pcb_merging", {"ratio": 0.3, "virtual_zeros": 3, "variant": "C"}),
    ("pcb_merging", {"ratio": 0.9, "variant": "A", "virtual_zeros": 1000}),
    ("breadcrumbs", {}),
    ("breadcrumbs", {"keep": 0.4, "outliers": 0.2, "scaling": 1.0}),
    ("breadcrumbs", {"keep": 0.3, "outliers": 0.01, "granularity": "tensor"}),
    ("breadcrumbs", {"keep": 1.0, "outliers": 0.3, "granularity": "tensor"}),
    ("magmax", {}),
    ("magmax", {"scaling": -1.5}),
    ("fisher_merging", {}),
    ("fisher_merging", {"epsilon": 0, "normalize": False}),
    ("fisher_merging", {"epsilon": 1.0, "normalize": True}),
    ("regmean", {}),
    ("regmean", {"off_diagonal": 1}),
    ("regmean", {"off_diagonal": 0.0}),
    ("metagpt", {}),
    ("slerp", {}),
    ("slerp", {"t": 0.2}),
    ("nuslerp", {}),
    ("nuslerp", {"t": 0.75, "vectors": "weights"}),
    ("nuslerp", {"t": 0.3, "dimension": "last"}),
    ("nuslerp", {"t": 0.6, "dimension": "first", "vectors": "weights"}),
    ("model_stock", {}),
    ("model_stock", {"average": "cosines"}),
    ("model_stock", {"granularity": "row"}),
    ("model_stock", {"granularity": "row", "average": "cosines"}),
]
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def identify(case):
    return case[0] + "".join(f"-{k}={getattr(v, '__name__', v)}" for k, v in case[1].items())


def check(method, base, experts, given_, tolerance=None):
    """Compare every state dict of a method with its oracle; half precisions up to one unit in the last place."""

    def compare(state, expected):
        if any(base[n].dtype in (torch.bfloat16, torch.float16) for n in touched(base)):
            check_rounded(state, expected, base)
        else:
            worst = max(PRECISION[base[n].dtype] for n in touched(base))
            check_state(state, expected, base, tolerance or worst)

    merged = fbl.merge(method, base, experts, **given_)
    if method in PER_TASK_ORACLES:
        expected = PER_TASK_ORACLES[method](base, experts, **given_)
        for task in experts:
            compare(merged.state_dict(task), expected[task])
    else:
        compare(merged.state_dict(), ORACLES[method](base, experts, **given_))


@FLOATS
@pytest.mark.parametrize("case", CASES, ids=identify)
@pytest.mark.parametrize(("keys", "count"), [("clip", 1), ("clip", 2), ("clip", 5), ("gpt2", 3), ("t5", 3)])
def test_method_equals_its_oracle(case, dtype, keys, count):
    method, given_ = case
    base = KEY_SETS[keys](3, dtype)
    experts = tied_experts_of(base, 2 if method in PAIRS else count, seed=40 + count)
    check(method, base, experts, arguments(method, base, list(experts), given_))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("case", CASES, ids=identify)
def test_half_precision_is_within_one_unit_of_the_rounded_oracle(case, dtype):
    method, given_ = case
    base = clip_state(5, dtype)
    experts = tied_experts_of(base, 2 if method in PAIRS else 3, seed=60)
    check(method, base, experts, arguments(method, base, list(experts), given_))


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_mixed_precisions_in_one_state_dict(case):
    method, given_ = case
    g = rng(12)
    base = {
        "a": torch.randn(5, 5, generator=g, dtype=torch.float64),
        "b": torch.randn(7, generator=g),
        "c": torch.randn(6, 4, generator=g),
        "d": torch.randn(9, generator=g, dtype=torch.float64),
    }
    experts = tied_experts_of(base, 2 if method in PAIRS else 3)
    check(method, base, experts, arguments(method, base, list(experts), given_))


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
        state["e"] += 8
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


# ---------------------------------------------------------------- DARE from the masks it drew


def drawn_masks(base, experts, drop_rate, seed):
    """The masks of `ta_dare`, read off merges of one expert that moves every coordinate by one from a base of zero."""
    masks = {}
    names = touched(base)
    zero = {n: torch.zeros_like(v) for n, v in base.items()}
    for names_tied in tied(base):
        zero |= dict.fromkeys(names_tied, zero[names_tied[0]])
    one = {n: torch.ones_like(v) if n in names else v for n, v in zero.items()}
    for task in experts:
        state = fbl.merge("ta_dare", zero, {task: one}, drop_rate=drop_rate, seed=seed, scaling=1.0).state_dict()
        oracle.survivors({n: state[n] for n in names}, {n: one[n] for n in names}, drop_rate)
        masks[task] = {n: (state[n] != 0).numpy() for n in names}
    return masks


@FLOATS
@pytest.mark.parametrize("keys", list(KEY_SETS))
@pytest.mark.parametrize(("count", "drop_rate"), [(1, 0.5), (2, 0.25), (3, 0.9), (5, 0.5), (2, 0.0)])
def test_dare_equals_the_base_method_on_the_masks_it_drew(keys, count, drop_rate, dtype):
    base = KEY_SETS[keys](3, dtype)
    experts = tied_experts_of(base, count)
    masks = drawn_masks(base, experts, drop_rate, seed=4)
    state = fbl.merge("ta_dare", base, experts, drop_rate=drop_rate, seed=4).state_dict()
    check_state(state, oracle.ta_dare(base, experts, masks, drop_rate), base, PRECISION[dtype])
    for extra in ({}, {"reduce": "mean", "keep": 0.6, "scaling": 1.0}, {"reduce": "max", "virtual_zeros": 100}):
        state = fbl.merge("ties_dare", base, experts, drop_rate=drop_rate, seed=4, **extra).state_dict()
        check_state(state, oracle.ties_dare(base, experts, masks, drop_rate, **extra), base, PRECISION[dtype])


# ---------------------------------------------------------------- tied tensors

RANDOM = [("ta_dare", {}), ("ties_dare", {"keep": 0.5})]


@pytest.mark.parametrize("case", CASES + RANDOM, ids=identify)
@pytest.mark.parametrize("keys", ["gpt2", "t5"])
def test_tied_names_stay_tied(case, keys):
    method, given_ = case
    base = KEY_SETS[keys](6)
    experts = tied_experts_of(base, 2)
    groups = tied(base)
    assert groups
    for state in models(method, base, experts, **given_).values():
        check_passthrough(state, base)
        for names in groups:
            assert len({state[n].data_ptr() for n in names}) == 1, names
        pointers = {state[n].data_ptr() for n in touched(base)}
        assert len(pointers) == len(touched(base)) - sum(len(names) - 1 for names in groups)
        assert not pointers & {base[n].data_ptr() for n in base}


@pytest.mark.parametrize("case", CASES + RANDOM, ids=identify)
def test_experts_may_list_tied_names_apart(case):
    method, given_ = case
    base = t5_state(6)
    experts = tied_experts_of(base, 2)
    apart = {t: loosened(e) for t, e in experts.items()}
    got, want = models(method, base, apart, **given_), models(method, base, experts, **given_)
    for task in want:
        assert all(torch.equal(got[task][n], want[task][n]) for n in base)


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_a_tie_that_an_expert_broke_is_merged_apart(case):
    """No trained weight is lost: the name that differs gets a merge of its own, the others stay tied."""
    method, given_ = case
    base = t5_state(6, torch.float64)
    experts = tied_experts_of(base, 2)
    first, second, third = tied(base)[0]
    experts["task1"][second] = experts["task1"][second] + 0.125
    for state in models(method, base, experts, **given_).values():
        assert state[first].data_ptr() == state[third].data_ptr() != state[second].data_ptr()
    check(method, base, experts, arguments(method, base, list(experts), given_))
