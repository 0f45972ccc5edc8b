"""Concrete TA and Concrete AM against their oracles, and the oracles against closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

import fusionbench_lite as fbl
from tests.oracles import adaptive, coefficients, concrete
from tests.support.adapt_comparison import (
    DOUBLE,
    TOLERANCE,
    check_coefficients,
    check_encode,
    check_losses,
    check_merged,
    identify,
    run,
)
from tests.support.helpers import UNUSED, distance, rng, setting

METHODS = ["concrete_ta", "concrete_am"]


def check_logits(got, want, dtype, lr: float) -> None:
    """Every logit; in float32 those whose gradient was well above rounding noise in every step, the others to Adam's bound."""
    got = {n.removeprefix("logits/"): v for n, v in got.learned.items() if n.startswith("logits/")}
    assert {f"logits/{n}" for n in got} >= set(want.learned)
    decided, total = 0, 0
    for name, value in got.items():
        if f"logits/{name}" not in want.learned:
            assert not bool(value.any()), name
            continue
        error = (value.double() - want.learned[f"logits/{name}"]).abs()
        assert value.shape == error.shape
        assert float(error.max()) <= 2 * 3.17 * lr * len(want.gradients), name
        if dtype == torch.float32 and want.gradients:
            smallest = torch.stack([g[name].abs() for g in want.gradients]).amin(0)
            error = error[smallest > 1e-5]
        decided, total = decided + error.numel(), total + value.numel()
        assert not error.numel() or float(error.max()) <= TOLERANCE[dtype], name
    assert decided > 0.2 * total


def compare(method, s, steps, dtype, **given):
    want = getattr(concrete, method)(s, steps, **given)
    got = fbl.adapt(method, *s.arguments(), steps, **given)
    tolerance = TOLERANCE[dtype]
    clamp = method == "concrete_am" and given.get("clamp", True)
    check_coefficients(got.coefficients, want.coefficients, len(s.experts), tolerance, given.get("scaling", 0.3), clamp)
    assert got.masks == {}
    check_losses(got.losses, want.losses, tolerance)
    check_logits(got, want, dtype, given.get("mask_lr" if method == "concrete_am" else "lr", 1e-3))
    check_merged(got, want.state, s, 50 * tolerance)
    check_encode(got, want.state, s, "task0", 100 * tolerance)
    return got, want


CASES = [
    ("concrete_ta", {}),
    ("concrete_ta", {"scaling": 0.6, "temperature": 1.0, "lr": 0.01, "seed": 3}),
    ("concrete_am", {}),
    ("concrete_am", {"clamp": False}),
    ("concrete_am", {"order": "released"}),
    ("concrete_am", {"order": "released", "clamp": False, "inner_lr": 0.1, "seed": 5}),
    ("concrete_am", {"level": "task", "mask_lr": 0.01, "lr": 0.01}),
    ("concrete_am", {"level": "task", "order": "released", "inner_lr": 0.2, "scaling": 0.5}),
    ("concrete_am", {"mask_steps": 0, "temperature": 0.8}),
    ("concrete_am", {"mask_steps": 10, "inner_lr": 0.1}),
    ("concrete_am", {"mask_steps": 3, "level": "task", "clamp": False, "lr": 0.01}),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])
def test_ten_steps(case, dtype):
    compare(case[0], setting(dtype=dtype, steps=20), 10, dtype, **case[1])


@pytest.mark.parametrize("case", [("concrete_ta", {}), ("concrete_am", {"order": "released"})], ids=identify)
@pytest.mark.parametrize("tasks", [1, 2, 4])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_other_task_counts(case, tasks, steps):
    compare(case[0], setting(tasks=tasks, seed=2, steps=7, dtype=DOUBLE), steps, DOUBLE, **case[1])


def merge_at(s, logits, draw=0, scaling=0.3):
    c = concrete.Concrete(s.pretrained, s.experts, scaling)
    masks = c.masks(logits, draw)
    return c, masks, c.merged(c.coefficients(), masks)


def loss_at(s, state):
    model, heads = adaptive.in_double(s.model, s.heads)
    return sum(coefficients.task_losses(model, heads, state, {t: b[0] for t, b in s.batches.items()}))


@pytest.mark.parametrize("method", METHODS)
def test_the_derivative_with_respect_to_scaling(method):
    """dL/d scaling of the implementation's own losses is <G * mask, tau>."""
    s, given_ = setting(steps=2, dtype=DOUBLE), {"mask_steps": 0} if method == "concrete_am" else {}
    c, masks, state = merge_at(s, concrete.Concrete(s.pretrained, s.experts).logits(), scaling=0.4)
    leaves = {n: v.requires_grad_() for n, v in state.items()}
    loss_at(s, leaves).backward()
    total = sum(
        float((leaves[n].grad * masks[n] * tau).sum()) for n in c.names if leaves[n].grad is not None for tau in c.taus[n]
    )
    up, down = (float(run(method, s, 1, scaling=0.4 + h, **given_).losses[0]) for h in (1e-5, -1e-5))
    assert abs(total) > 1e-3
    assert (up - down) / 2e-5 == pytest.approx(total, rel=1e-6)


# ---------------------------------------------------------------- the oracle itself


def test_gradient_of_the_logits():
    """Autograd, finite differences at fixed noise and the closed form agree; the mask is invariant to its own scale."""
    s = setting(steps=1, dtype=DOUBLE)
    c = concrete.Concrete(s.pretrained, s.experts)
    g = rng(4)
    logits = {n: torch.randn(x.shape, generator=g, dtype=DOUBLE).requires_grad_() for n, x in c.logits().items()}
    _, _, state = merge_at(s, logits)
    loss_at(s, state).backward()
    leaves = {n: v.detach().requires_grad_() for n, v in state.items()}
    loss_at(s, leaves).backward()
    for name, x in logits.items():
        if name in UNUSED:
            assert x.grad is None
            continue
        m = torch.sigmoid((concrete.noise(name, x.shape, 0, 0) + x.detach()) / 0.5)
        a = leaves[name].grad * 0.3 * sum(c.taus[name])
        by_mask = (a - (a * m / m.mean()).mean()) / m.mean()
        assert abs(float((by_mask * m).sum())) < 1e-12
        assert torch.allclose(x.grad, by_mask * m * (1 - m) / 0.5, atol=1e-13), name
        entry = (0,) * x.dim()
        values = []
        for h in (1e-5, -1e-5):
            moved = {n: v.detach().clone() for n, v in logits.items()}
            moved[name][entry] += h
            values.append(float(loss_at(s, merge_at(s, moved)[2])))
        assert math.isclose((values[0] - values[1]) / 2e-5, float(x.grad[entry]), rel_tol=1e-5, abs_tol=1e-9), name


def test_large_logits_are_task_arithmetic():
    s = setting(dtype=DOUBLE)
    c = concrete.Concrete(s.pretrained, s.experts)
    _, masks, state = merge_at(s, {n: x + 1e4 for n, x in c.logits().items()})
    static = fbl.merge("task_arithmetic", s.pretrained, s.experts).state_dict()
    assert all(bool((m == 1).all()) for m in masks.values())
    assert all(distance(state[n], static[n]) < 1e-14 for n in c.names)


def test_first_meta_step_by_hand():
    """lambda' is scaling minus the sign of the inner gradient; the recorded loss is that of the outer batch at lambda'."""
    s = setting(steps=2, dtype=DOUBLE)
    c, masks, _ = merge_at(s, concrete.Concrete(s.pretrained, s.experts).logits())
    at = {n: v.requires_grad_() for n, v in c.coefficients().items()}
    loss_at(s, c.merged(at, masks)).backward()
    read = [n for n in c.names if n not in UNUSED]
    assert all(float(at[n].grad.abs().min()) > 1e-5 for n in read)
    adapted = {n: 0.3 - (at[n].grad.sign() if n in read else 0 * at[n].detach()) for n in c.names}
    outer = s.copy()
    outer.batches = {t: b[1:] for t, b in s.batches.items()}
    want = loss_at(outer, c.merged(adapted, masks))
    for order in ("paper", "released"):
        got = concrete.concrete_am(s, 1, mask_steps=1, clamp=False, order=order).losses
        assert float(got) == pytest.approx(float(want), rel=1e-3)
