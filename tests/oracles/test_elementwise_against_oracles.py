"""Elementwise, interpolating and data-light methods against their float64 oracles."""

from __future__ import annotations

import pytest
import torch

import fusionbench_lite as fbl
from tests.oracles import elementwise as oracle
from tests.oracles.elementwise import ORACLES, PER_TASK_ORACLES
from tests.support.helpers import PRECISION, check_passthrough, check_rounded, check_state, clip_state, rng, touched
from tests.support.key_sets import KEY_SETS, loosened, t5_state, tied, tied_experts_of
from tests.support.merging import PAIRS, arguments, models


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
    ("tatr", {}),
    ("tatr", {"left_out": 0.3, "scaling": 1.0}),
    ("tatr", {"left_out": 0}),
    ("tatr", {"left_out": 1, "scaling": -2.0}),
    ("tatr_zero_shot", {}),
    ("tatr_zero_shot", {"left_out": 0.5, "scaling": 0.7}),
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
