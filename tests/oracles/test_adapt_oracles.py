"""The adaptive oracle against finite differences, closed forms and hand-made cases (no package code involved)."""

from __future__ import annotations

import math

import pytest
import torch

from tests.oracles import adaptive, data_free
from tests.support.helpers import UNUSED, setting

DOUBLE = torch.float64


def problems(s):
    yield "taskwise", adaptive.adamerging(s.pretrained, s.experts, "task")
    yield "layerwise", adaptive.adamerging(s.pretrained, s.experts, "layer", clamp=False)
    yield "ta", adaptive.adarank("ta", s.pretrained, s.experts, 0.3, 0.6)
    yield "cart", adaptive.adarank("cart", s.pretrained, s.experts, 2.3, 0.16)
    yield "tsvm", adaptive.adarank("tsvm", s.pretrained, s.experts, 1.0, None)


def loss_at(problem, s, coefficients, logits):
    model, heads = adaptive.in_double(s.model, s.heads)
    batch = {t: b[0] for t, b in s.batches.items()}
    return adaptive.total_loss(model, heads, adaptive.merged(problem, coefficients, logits), batch)


@pytest.mark.parametrize("which", range(5))
def test_coefficient_gradient_is_the_finite_difference(which):
    s = setting(steps=1, dtype=DOUBLE)
    name, problem = list(problems(s))[which]
    coefficients, logits = adaptive.initial(problem)
    for c in coefficients.values():
        c.requires_grad_()
    loss_at(problem, s, coefficients, logits).backward()
    checked = 0
    for key, c in list(coefficients.items())[which % len(coefficients) :: 3]:
        if c.grad is None:
            continue
        for t in range(len(c)):
            shifted = []
            for h in (1e-5, -1e-5):
                moved = {n: v.detach().clone() for n, v in coefficients.items()}
                moved[key][t] += h
                shifted.append(float(loss_at(problem, s, moved, logits)))
            assert math.isclose(
                float(c.grad[t]), (shifted[0] - shifted[1]) / 2e-5, rel_tol=1e-6, abs_tol=1e-8
            ), (name, key, t)
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("which", [2, 3, 4])
def test_mask_gradient_is_the_straight_through_formula(which):
    s = setting(steps=1, dtype=DOUBLE)
    _, problem = list(problems(s))[which]
    coefficients, logits = adaptive.initial(problem)
    for b in logits.values():
        b.requires_grad_()
    loss_at(problem, s, coefficients, logits).backward()
    # G of the merged weights as plain leaves, at the hard-bit weights.
    leaves = {n: v.detach().requires_grad_() for n, v in adaptive.merged(problem, coefficients, logits).items()}
    model, heads = adaptive.in_double(s.model, s.heads)
    adaptive.total_loss(model, heads, leaves, {t: b[0] for t, b in s.batches.items()}).backward()
    for name, f in problem.factors.items():
        if "unused" in name:
            continue
        g = leaves[name].grad
        for t in range(len(problem.tasks)):
            for r in range(len(f.values[t])):
                q = float(f.values[t][r] * (f.left[t][:, r] @ g @ f.right[t][r]))
                m = 1 / (1 + math.exp(-float(logits[name].detach()[t, r]) / 10))
                want = float(coefficients[name].detach()[t]) * q * m * (1 - m) / 10
                assert math.isclose(float(logits[name].grad[t, r]), want, rel_tol=1e-8, abs_tol=1e-13)


@pytest.mark.parametrize(("value", "passes"), [(-0.1, 0.0), (0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1.1, 0.0)])
def test_clamp_lets_the_gradient_through_on_the_closed_interval(value, passes):
    s = setting(steps=1, dtype=DOUBLE)
    problem = adaptive.adamerging(s.pretrained, s.experts, "layer", scaling=value)
    coefficients, _ = adaptive.initial(problem)
    for c in coefficients.values():
        c.requires_grad_()
    loss_at(problem, s, coefficients, {}).backward()
    gradients = torch.stack([c.grad for c in coefficients.values() if c.grad is not None])
    assert bool((gradients != 0).all()) == bool(passes)
    assert bool((gradients == 0).all()) != bool(passes)


def test_starting_points_are_the_static_methods():
    s = setting(steps=0, dtype=DOUBLE)
    static = {
        "taskwise": data_free.task_arithmetic(s.pretrained, s.experts, 0.3),
        "layerwise": data_free.task_arithmetic(s.pretrained, s.experts, 0.3),
        "ta": data_free.task_arithmetic(s.pretrained, s.experts, 0.3),
        "cart": data_free.cart(s.pretrained, s.experts, 2.3, 0.16),
        "tsvm": data_free.tsv_m(s.pretrained, s.experts, matrices="attn_mlp"),
    }
    for name, problem in problems(s):
        if name == "ta":
            problem = adaptive.adarank("ta", s.pretrained, s.experts, 0.3, 1.0)
        state = adaptive.run(problem, s.model, s.heads, s.batches, 0, 1e-3).state
        assert all(torch.allclose(state[n], torch.as_tensor(v), atol=1e-12) for n, v in static[name].items()), name


def test_entropy_of_known_distributions():
    uniform = torch.zeros(4, 5, dtype=DOUBLE, requires_grad=True)
    loss = adaptive.entropy(uniform)
    loss.backward()
    assert math.isclose(float(loss), math.log(5))
    assert float(uniform.grad.abs().max()) < 1e-15
    p = torch.tensor([[0.5, 0.25, 0.25]], dtype=DOUBLE)
    assert math.isclose(float(adaptive.entropy(p.log() + 3.0)), 1.5 * math.log(2))


def test_first_adam_step_moves_by_the_learning_rate():
    s = setting(steps=1, dtype=DOUBLE)
    problem = adaptive.adamerging(s.pretrained, s.experts, "layer")
    out = adaptive.run(problem, s.model, s.heads, s.batches, 1, 1e-3)
    for name, c in out.coefficients.items():
        used = name not in UNUSED
        assert torch.allclose((c - 0.3).abs(), torch.full((3,), 1e-3 * used, dtype=DOUBLE), atol=1e-7), name


def test_top_only_never_leaves_the_initial_rank():
    s = setting(steps=40, dtype=DOUBLE)
    problem = adaptive.adarank("cart", s.pretrained, s.experts, 2.3, 0.3, top_only=True)
    out = adaptive.run(problem, s.model, s.heads, s.batches, 40, 0.02)
    flips = 0
    for name, mask in out.masks.items():
        assert not bool(mask[:, 2:].any())
        assert bool((out.logits[name][:, 2:] == -0.1).all())
        flips += int((~mask[:, :2]).sum())
    assert flips > 0
