"""Laws of Concrete TA and Concrete AM (docs/decisions.md, D20) and what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.support.adapt_comparison import DOUBLE, close_states, refuse, refuse_value, run
from tests.support.helpers import UNUSED, distance, rng, same_bits, setting, snapshot, touched
from tests.support.laws import costly

METHODS = ["concrete_ta", "concrete_am"]
LAWS = costly(8)
SEED = st.integers(0, 2**31)


@LAWS
@given(seed=SEED, method=st.sampled_from(METHODS), steps=st.integers(0, 3), temperature=st.sampled_from([0.2, 0.5, 2.0]))
def test_masks_have_mean_one_per_tensor(seed, method, steps, temperature):
    """One expert, every entry of its task vector far from 0: the mask is what the merge multiplied it with."""
    s = setting(tasks=1, steps=6, seed=seed % 1000, dtype=DOUBLE)
    g = rng(seed)
    for name in touched(s.pretrained):
        shape = s.pretrained[name].shape
        sign = torch.randint(0, 2, shape, generator=g) * 2 - 1
        s.experts["task0"][name] = s.pretrained[name] + sign * (0.1 + 0.1 * torch.rand(shape, generator=g, dtype=DOUBLE))
    state = run(method, s, steps, temperature=temperature, seed=seed, **({"mask_steps": steps} if method[-2:] == "am" else {}))
    for name, value in state.state_dict().items():
        if name in touched(s.pretrained):
            mask = (value - s.pretrained[name]) / (s.experts["task0"][name] - s.pretrained[name]) / 0.3
            assert float(mask.mean()) == pytest.approx(1, abs=1e-9)
            assert float(mask.min()) >= -1e-9
            assert mask.numel() < 2 or float(mask.std()) > 1e-3


@LAWS
@given(seed=SEED, steps=st.integers(0, 3))
def test_a_high_temperature_leaves_adamerging(seed, steps):
    s = setting(steps=4, seed=seed % 1000, dtype=DOUBLE)
    static = fbl.merge("task_arithmetic", s.pretrained, s.experts).state_dict()
    close_states(run("concrete_ta", s, steps, temperature=1e12, seed=seed).state_dict(), static, s.pretrained, 1e-9)
    for level in ("layer", "task"):
        want = run(f"adamerging_{level}wise", s, steps, lr=0.01)
        got = run("concrete_am", s, steps, temperature=1e12, seed=seed, mask_steps=0, level=level, lr=0.01)
        close_states(got.state_dict(), want.state_dict(), s.pretrained, 1e-8)
        assert torch.allclose(got.losses, want.losses, atol=1e-9)


@LAWS
@given(seed=SEED, steps=st.integers(1, 3))
def test_without_an_inner_step_stage_one_is_concrete_ta_on_the_outer_batches(seed, steps):
    s = setting(steps=2 * steps, seed=seed % 1000, dtype=DOUBLE)
    results = [
        run("concrete_am", s, steps, mask_steps=steps, inner_lr=1e-13, order=order, seed=seed) for order in ("paper", "released")
    ]
    outer = s.copy()
    outer.batches = {t: b[1::2] for t, b in s.batches.items()}
    want = run("concrete_ta", outer, steps, seed=seed)
    for got in results:
        assert torch.allclose(got.losses, want.losses, atol=1e-9)
        close_states(got.state_dict(), want.state_dict(), s.pretrained, 1e-9)
        assert all(bool((v == 0.3).all()) for v in got.coefficients.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_draws_depend_on_the_seed_alone(method):
    s = setting(dtype=DOUBLE, steps=8)
    a, b, other = run(method, s, 3), run(method, s, 3, seed=0), run(method, s, 3, seed=1)
    assert same_bits(a.state_dict(), b.state_dict())
    assert all(distance(other.state_dict()[n], a.state_dict()[n]) > 1e-3 for n in touched(s.pretrained) if s.pretrained[n].dim())
    permuted = run(method, s.permuted(["task2", "task0", "task1"]), 3)
    close_states(permuted.state_dict(), a.state_dict(), s.pretrained, 1e-9)
    torch.manual_seed(99)
    assert same_bits(run(method, s, 3).state_dict(), a.state_dict())


@LAWS
@given(seed=SEED, method=st.sampled_from(METHODS), lr=st.sampled_from([1e-4, 0.05]), steps=st.integers(1, 4))
def test_logits_move_at_most_like_adam_and_only_where_the_model_reads(seed, method, lr, steps):
    s = setting(seed=seed % 1000, steps=8)
    given_ = {"mask_lr": lr, "mask_steps": steps} if method == "concrete_am" else {"lr": lr}
    before = [snapshot(x) for x in (s.pretrained, *s.experts.values())]
    got = run(method, s, steps, seed=seed, **given_)
    assert all(same_bits(a, b) for a, b in zip(before, (s.pretrained, *s.experts.values()), strict=True))
    moved = {n.removeprefix("logits/"): v for n, v in got.learned.items() if n.startswith("logits/")}
    assert set(moved) >= set(touched(s.pretrained))
    for name, value in moved.items():
        assert float(value.abs().max() if value.numel() else 0) <= 3.17 * lr * steps + 1e-6
        read = name in touched(s.pretrained) and name not in UNUSED
        # The inner step of Concrete AM may set all coefficients of a tensor to 0: then its mask has no gradient.
        assert bool(value.any()) == read or (read and method == "concrete_am"), name


@pytest.mark.parametrize("method", METHODS)
def test_duplicated_tasks_and_the_experts_that_are_the_base(method):
    s = setting(tasks=2, dtype=DOUBLE, steps=10)
    for part in (s.experts, s.heads, s.batches):
        part["task1"] = part["task0"]
    got = run(method, s, 4)
    assert all(torch.allclose(v[0], v[1], atol=1e-12) for v in got.coefficients.values())
    s.experts = {t: snapshot(s.pretrained) for t in s.experts}
    state = run(method, s, 4).state_dict()
    assert all(torch.equal(state[n], s.pretrained[n]) for n in touched(s.pretrained))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("method", "name", "value"), [("concrete_ta", "temperature", 0), ("concrete_am", "level", "tensor")])
def test_value_out_of_range(method, name, value):
    """Every range is tried out in tests/planning/test_hyperparameter_ranges.py: here, that an adaptation asks for it."""
    refuse_value(method, name, value, setting(steps=4))


def test_more_mask_steps_than_steps():
    refuse("mask_steps", r"\b5\b", r"\b4\b", method="concrete_am", s=setting(steps=20), steps=4, mask_steps=5)


def test_too_few_batches_for_two_draws_a_step():
    s = setting(steps=14)
    refuse("task0", r"\b14\b", method="concrete_am", s=s, steps=9)
    run("concrete_am", setting(steps=15), 9)
