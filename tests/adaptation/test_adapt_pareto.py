"""Pareto Merging against its oracle, its laws and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.oracles import adaptive, coefficients, data_free, pareto
from tests.support.adapt_comparison import (
    DOUBLE,
    TOLERANCE,
    check_coefficients,
    check_encode,
    check_losses,
    check_merged,
    close_states,
    refuse,
    refuse_value,
    run,
)
from tests.support.helpers import UNUSED, Setting, distance, same_bits, setting, snapshot, touched
from tests.support.laws import costly

METHOD = "pareto_merging"
LAWS, SEED = costly(8), st.integers(0, 2**31)


def compare(s, steps, tolerance, **given):
    """Coefficients, losses, merged weights and features of both preferences."""
    want = pareto.pareto_merging(s, steps, **given)
    for preference in ("equal", "task"):
        got = fbl.adapt(METHOD, *s.arguments(), steps, preference=preference, **given)
        check_coefficients(got.coefficients, want.coefficients, len(s.experts), tolerance, given.get("scaling", 0.3))
        assert got.masks == {}
        check_losses(got.losses, want.losses, tolerance)
        for task in s.experts:
            state = want.state(want.equal() if preference == "equal" else want.one_hot(task))
            check_merged(got, state, s, 50 * tolerance, task)
            check_encode(got, state, s, task, 100 * tolerance)
        if preference == "equal":
            check_merged(got, want.state(want.equal()), s, 50 * tolerance)


CASES = [
    {},
    {"mode": "distance"},
    {"scalarisation": "linear"},
    {"mode": "distance", "scalarisation": "linear", "lr": 0.01},
    {"learn_coefficients": False},
    {"learn_coefficients": False, "mode": "distance", "mu": 5.0, "seed": 4},
    {"rank": 2, "mu": 1.0, "scaling": 0.5, "lr": 0.01},
    {"matrices": "all_2d", "rank": 3, "seed": 7, "scalarisation": "linear"},
]


def identify(given):
    return "-".join(f"{k}={v}" for k, v in given.items()) or "default"


@pytest.mark.parametrize("given_", CASES, ids=identify)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])
def test_ten_steps(given_, dtype):
    compare(setting(dtype=dtype), 10, TOLERANCE[dtype], **given_)


@pytest.mark.parametrize("given_", [{}, {"mode": "distance", "scalarisation": "linear"}], ids=identify)
@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_other_task_counts(given_, tasks):
    compare(setting(tasks=tasks, seed=2, steps=4, dtype=DOUBLE), 4, 1e-9, lr=0.01, **given_)


@pytest.mark.parametrize("mode", ["entropy", "distance"])
def test_the_derivative_with_respect_to_scaling(mode):
    """With one task and the linear scalarisation the gradient of the loss is that of the recorded loss."""
    s = setting(tasks=1, steps=1, dtype=DOUBLE)
    want = pareto.pareto_merging(s, 1, mode=mode, scalarisation="linear", scaling=0.4)
    total = sum(float(g.sum()) for n, g in want.gradients[0].items() if n.startswith("coefficients"))
    up, down = (float(run(METHOD, s, 1, mode=mode, scaling=0.4 + h).losses[0]) for h in (1e-5, -1e-5))
    assert abs(total) > 1e-3
    assert (up - down) / 2e-5 == pytest.approx(total, rel=1e-6)


# ---------------------------------------------------------------- the oracle itself


@pytest.mark.parametrize("kind", ["tchebycheff", "linear"])
def test_gradients_of_the_oracle(kind):
    """Autograd against finite differences and against the closed forms dA = G B C^T, dB = G^T A C, dC_t = gamma_t A^T G B."""
    s = setting(steps=1, dtype=DOUBLE)
    p = pareto.start(s.pretrained, s.experts, 0.3, 3, "attn_mlp", 0)
    g = torch.Generator().manual_seed(3)
    for core in p.core.values():
        core.normal_(generator=g)
    gamma = pareto.preference(3, 0, 0)
    model, heads = adaptive.in_double(s.model, s.heads)

    def loss_at(state):
        losses = coefficients.task_losses(model, heads, state, {t: b[0] for t, b in s.batches.items()})
        return pareto.scalarise(losses, gamma, kind, 0.1)

    name = "resblocks.0.mlp.c_fc.weight"
    left, right, core = p.left[name].requires_grad_(), p.right[name].requires_grad_(), p.core[name].requires_grad_()
    state = p.state(gamma)
    loss_at(state).backward()
    leaves = {n: v.detach().requires_grad_() for n, v in state.items()}
    loss_at(leaves).backward()
    grad = leaves[name].grad
    with torch.no_grad():
        mixed = sum(gamma[t] * core[t] for t in range(3))
        assert torch.allclose(left.grad, grad @ right @ mixed.T, atol=1e-12)
        assert torch.allclose(right.grad, grad.T @ left @ mixed, atol=1e-12)
        for t in range(3):
            assert torch.allclose(core.grad[t], gamma[t] * left.T @ grad @ right, atol=1e-12)
        for value in (left, right, core):
            entry, found = (1,) * value.dim(), []
            for h in (1e-5, -2e-5):
                value[entry] += h
                found.append(float(loss_at(p.state(gamma))))
            value[entry] += 1e-5
            assert (found[0] - found[1]) / 2e-5 == pytest.approx(float(value.grad[entry]), rel=1e-5, abs=1e-9)


def test_preferences_are_uniform_on_the_simplex():
    found = torch.stack([pareto.preference(3, 0, i) for i in range(2000)])
    assert torch.allclose(found.sum(1), torch.ones(2000, dtype=DOUBLE), atol=1e-12)
    assert torch.allclose(found.mean(0), torch.full((3,), 1 / 3, dtype=DOUBLE), atol=0.02)
    assert torch.allclose(found.var(0), torch.full((3,), 1 / 18, dtype=DOUBLE), atol=0.005)  # Dirichlet(1, 1, 1)


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])
@pytest.mark.parametrize("scaling", [0.3, 1.1, -0.2])
def test_zero_steps_is_task_arithmetic_for_every_preference(dtype, scaling):
    s = setting(dtype=dtype)
    s.batches = {t: [] for t in s.batches}
    static = data_free.task_arithmetic(s.pretrained, s.experts, scaling)
    for preference in ("equal", "task"):
        got = run(METHOD, s, 0, preference=preference, scaling=scaling)
        for task in s.experts:
            state = got.state_dict(task)
            assert all(distance(state[n], static[n]) <= TOLERANCE[dtype] for n in static)


@LAWS
@given(seed=SEED, steps=st.integers(1, 4), mode=st.sampled_from(["entropy", "distance"]), rank=st.sampled_from([1, 4, 16]))
def test_the_merge_is_linear_in_the_preference(seed, steps, mode, rank):
    s = setting(seed=seed % 1000, steps=4, dtype=DOUBLE)
    given_ = {"mode": mode, "rank": rank, "seed": seed, "lr": 0.05}
    equal, own = run(METHOD, s, steps, **given_), run(METHOD, s, steps, preference="task", **given_)
    states, middle = [own.state_dict(t) for t in s.experts], equal.state_dict()
    matrices = {n for n, v in s.pretrained.items() if v.ndim == 2 and ("attn" in n or "mlp" in n)}
    for name in touched(s.pretrained):
        base = s.pretrained[name].clone()
        for t, expert in enumerate(s.experts.values()):
            base += own.coefficients[name][t] * (expert[name] - s.pretrained[name])
        parts = [state[name] - base for state in states]
        assert distance(middle[name], base + sum(parts) / 3) < 1e-12
        learned = name in matrices and (mode == "distance" or name not in UNUSED)
        assert all((float(part.abs().max()) > 1e-9) == learned for part in parts), name
        if learned:
            assert all(int(torch.linalg.matrix_rank(part, rtol=1e-9)) <= rank for part in parts), name
    assert torch.equal(equal.losses, own.losses)


@LAWS
@given(seed=SEED, steps=st.integers(1, 4), lr=st.sampled_from([1e-4, 0.1]), learn=st.booleans())
def test_coefficients_move_at_most_like_adam(seed, steps, lr, learn):
    s = setting(seed=seed % 1000, steps=4)
    got = run(METHOD, s, steps, lr=lr, learn_coefficients=learn, seed=seed)
    for name, value in got.coefficients.items():
        assert float((value - 0.3).abs().max()) <= (3.17 * lr * steps + 1e-6 if learn else 1e-7)
        assert name not in UNUSED or bool((value == value.new_tensor(0.3)).all())


def test_distance_reads_no_data_and_entropy_does():
    s = setting(steps=3, dtype=DOUBLE)
    empty = Setting(s.model, s.pretrained, s.experts, s.heads, {t: [] for t in s.batches})
    a, b = (run(METHOD, x, 3, mode="distance").state_dict() for x in (s, empty))
    assert same_bits(a, b)
    refuse("task0", method=METHOD, s=empty, steps=3)


def test_every_preference_comes_closer_to_its_expert():
    """The weights at the preference of one task, against where all preferences start."""
    s = setting(steps=0, dtype=DOUBLE)
    start, got = (run(METHOD, s, n, mode="distance", preference="task", lr=0.01) for n in (0, 150))

    def distance_to(result, task):
        return sum(float((v - s.experts[task][n]).square().sum()) for n, v in result.state_dict(task).items())

    assert all(distance_to(got, task) < 0.8 * distance_to(start, task) for task in s.experts)


def test_entropy_falls_when_one_batch_is_repeated():
    s = setting(steps=1)
    s.batches.update({t: b * 30 for t, b in s.batches.items()})
    first, *_, last = run(METHOD, s, 30, lr=0.01).losses.tolist()
    assert last < first


def test_the_draws_depend_on_the_seed_and_inputs_stay():
    s = setting(steps=3)
    before = [snapshot(x) for x in (s.pretrained, *s.experts.values(), s.model.state_dict())]
    a, b, other = run(METHOD, s, 3), run(METHOD, s, 3, seed=0), run(METHOD, s, 3, seed=1)
    assert all(same_bits(x, y) for x, y in zip(before, (s.pretrained, *s.experts.values(), s.model.state_dict()), strict=True))
    assert same_bits(a.state_dict(), b.state_dict())
    assert not same_bits(a.state_dict(), other.state_dict())
    assert torch.equal(a.losses[0], other.losses[0])  # C = 0: the first loss does not see the preference


def test_experts_that_are_the_base_move_nothing_in_distance_mode():
    s = setting(dtype=DOUBLE)
    s.experts = {t: snapshot(s.pretrained) for t in s.experts}
    close_states(run(METHOD, s, 3, mode="distance").state_dict(), s.pretrained, s.pretrained, 1e-12)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("name", "value"), [("mu", 0), ("rank", 2.5), ("preference", "first")])
def test_value_out_of_range(name, value):
    """Every range is tried out in tests/planning/test_hyperparameter_ranges.py: here, that an adaptation asks for it."""
    refuse_value(METHOD, name, value)


def test_the_task_preference_needs_a_task():
    got = run(METHOD, setting(steps=0), 0, preference="task")
    with pytest.raises(fbl.MergeError, match="task"):
        got.state_dict()
    with pytest.raises(fbl.MergeError, match="task1"):
        got.state_dict("task11")
