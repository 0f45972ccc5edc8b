"""Laws of DARE (Yu et al. 2024): what is dropped is random, everything else is exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.elementwise import survivors
from tests.support.helpers import experts_of, same_bits
from tests.support.key_sets import KEY_SETS, gpt2_state, loosened, tied, tied_experts_of
from tests.support.merging import close, draw, merge, update, zeros_like

SEED = st.integers(0, 2**31)
BASES = {"ta_dare": "task_arithmetic", "ties_dare": "ties_merging"}
METHOD = st.sampled_from(list(BASES))
RATE = st.floats(0, 0.999)


def experts_from_zero(seed, count=1, dtype=torch.float64):
    zero = zeros_like(draw(seed, dtype))
    return zero, experts_of(zero, count, seed % 1009)


def mask(size, drop_rate, seed, task="task0", name="w"):
    """The mask of one long vector."""
    zero = {name: torch.zeros(size)}
    state = merge("ta_dare", zero, {task: {name: torch.ones(size)}}, drop_rate=drop_rate, seed=seed, scaling=1)
    return survivors(state, {name: torch.ones(size)}, drop_rate)[name]


@given(seed=SEED, count=st.integers(1, 4), method=METHOD, scaling=st.floats(-2, 2), dare_seed=st.integers())
def test_dropping_nothing_is_the_base_method(seed, count, method, scaling, dare_seed):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    state = merge(method, base, experts, drop_rate=0, seed=dare_seed, scaling=scaling)
    close(state, merge(BASES[method], base, experts, scaling=scaling), 1e-12)


@given(seed=SEED, dare_seed=SEED, rate=RATE, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_survivors_are_exactly_the_rescaled_entries(seed, dare_seed, rate, dtype):
    zero, experts = experts_from_zero(seed, 1, dtype)
    survivors(merge("ta_dare", zero, experts, drop_rate=rate, seed=dare_seed, scaling=1), experts["task0"], rate)


@given(seed=SEED, count=st.integers(2, 4), rate=RATE, dare_seed=SEED)
def test_arithmetic_adds_what_each_expert_alone_keeps(seed, count, rate, dare_seed):
    """So the mask of a task does not depend on the other tasks or on their order."""
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    options = {"drop_rate": rate, "seed": dare_seed}
    parts = [update(merge("ta_dare", base, {t: e}, **options), base) for t, e in experts.items()]
    turned = dict(reversed(list(experts.items())))
    for order in (experts, turned):
        close(merge("ta_dare", base, order, **options), {n: base[n] + sum(p[n] for p in parts) for n in base})


@given(dare_seed=SEED, rate=st.floats(0.01, 0.99))
def test_kept_fraction_is_binomial(dare_seed, rate):
    size = 4000
    kept = mask(size, rate, dare_seed).sum()
    # Six standard deviations: one false alarm in 5e8 draws.
    assert abs(kept - size * (1 - rate)) <= 6 * math.sqrt(size * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_mean_over_seeds_is_the_task_vector(rate):
    zero, experts = experts_from_zero(5)
    seeds = 600
    mean = zeros_like(zero)
    for seed in range(seeds):
        state = merge("ta_dare", zero, experts, drop_rate=rate, seed=seed, scaling=1.0)
        mean = {n: mean[n] + state[n] / seeds for n in mean}
    for name, tau in experts["task0"].items():
        spread = tau.abs() * math.sqrt(rate / (1 - rate) / seeds)
        assert bool(((mean[name] - tau).abs() <= 6 * spread).all()), name


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_every_coordinate_is_dropped_at_the_same_rate(rate):
    """Summed over seeds, no coordinate is kept more often than another, and neighbours are dropped independently."""
    seeds, size = 400, 64
    draws = torch.stack([torch.from_numpy(mask(size, rate, s)) for s in range(seeds)]).double()
    slack = 6 * math.sqrt(rate * (1 - rate) / seeds)
    assert float((draws.mean(0) - (1 - rate)).abs().max()) <= slack
    both = (draws[:, 1:] * draws[:, :-1]).mean()
    assert abs(float(both) - (1 - rate) ** 2) <= 6 * math.sqrt(1 / (seeds * (size - 1)))


@given(seed=SEED, count=st.integers(1, 3), method=METHOD, rate=RATE, dare_seed=SEED, data=st.data())
def test_same_seed_same_result_in_any_order(seed, count, method, rate, dare_seed, data):
    base = draw(seed)
    experts = experts_of(base, count, seed % 1009)
    options = {"drop_rate": rate, "seed": dare_seed}
    state = merge(method, base, experts, **options)
    torch.rand(seed % 7)  # the global generator plays no part
    assert same_bits(merge(method, base, experts, **options), state)
    order = data.draw(st.permutations(list(base)))
    turned = merge(method, {n: base[n] for n in order}, {t: {n: e[n] for n in order} for t, e in experts.items()}, **options)
    assert all(torch.equal(turned[n], state[n]) for n in base)


@given(seed=SEED, rate=RATE, dare_seed=SEED, name=st.sampled_from(list(draw(0))))
def test_a_tensor_alone_is_dropped_as_among_others(seed, rate, dare_seed, name):
    base = draw(seed)
    experts = experts_of(base, 2, seed % 1009)
    options = {"drop_rate": rate, "seed": dare_seed}
    alone = merge("ta_dare", {name: base[name]}, {t: {name: e[name]} for t, e in experts.items()}, **options)
    assert torch.equal(alone[name], merge("ta_dare", base, experts, **options)[name])


@pytest.mark.parametrize("change", [{"seed": 1}, {"task": "task1"}, {"name": "v"}, {"seed": -1}, {"seed": 2**40}])
def test_other_seeds_tasks_and_names_draw_other_masks(change):
    same = (mask(2000, 0.5, 0) == mask(2000, 0.5, **{"seed": 0, **change})).mean()
    assert 0.4 < same < 0.6


@pytest.mark.parametrize("pair", [("a", "bc"), ("ab", "c")])
def test_task_and_name_are_told_apart(pair):
    task, name = pair
    assert (mask(2000, 0.5, 0, task, name) == mask(2000, 0.5, 0, "abc", "w")).mean() < 0.6
    assert (mask(2000, 0.5, 0, "a", "bc") == mask(2000, 0.5, 0, "ab", "c")).mean() < 0.6


def test_the_global_generator_is_left_alone():
    zero, experts = experts_from_zero(1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    merge("ta_dare", zero, experts, seed=9)
    merge("ties_dare", zero, experts, seed=9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_mask_does_not_depend_on_the_dtype(dtype):
    zero, wanted = {"w": torch.zeros(500, dtype=dtype)}, mask(500, 0.5, 11)
    state = merge("ta_dare", zero, {"task0": {"w": torch.ones(500, dtype=dtype)}}, seed=11, scaling=1.0)
    assert (state["w"].double().numpy() == 2.0 * wanted).all()


@pytest.mark.parametrize("keys", ["gpt2", "t5"])
def test_tied_names_share_the_mask_of_the_first(keys):
    base = KEY_SETS[keys](2, torch.float64)
    experts = tied_experts_of(base, 2)
    state = merge("ta_dare", base, experts, seed=3)
    names = tied(base)[0]
    assert all(torch.equal(state[n], state[names[0]]) for n in names)
    first = merge("ta_dare", {names[0]: base[names[0]]}, {t: {names[0]: e[names[0]]} for t, e in experts.items()}, seed=3)
    assert torch.equal(first[names[0]], state[names[0]])


def test_untied_names_are_dropped_apart():
    base = loosened(gpt2_state(2, torch.float64))
    state = merge("ta_dare", base, tied_experts_of(base, 1), seed=3)
    assert not torch.equal(state["lm_head.weight"] != base["lm_head.weight"],
                           state["transformer.wte.weight"] != base["transformer.wte.weight"])  # fmt: skip
