"""MetaMerging against a float64 oracle and finite differences (docs/decisions.md, D10), and its laws."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.func import functional_call

import fusionbench_lite as fbl
from tests.oracles import metamerging as oracle
from tests.oracles.surgery import double
from tests.support.adapter_checks import check_encode, check_learned, check_losses
from tests.support.helpers import check_passthrough, distance, same_bits, setting, snapshot, touched
from tests.support.small_models import FlatPerceptron, NoBlocks, Transformer, small_setting

DOUBLE = torch.float64
OF_PROBLEM = ("adapters", "rank", "loss", "seed")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])


def problem_of(s, **options) -> oracle.Problem:
    example = next(iter(s.batches.values()))[0]
    chosen = {k: v for k, v in options.items() if k in OF_PROBLEM}
    return oracle.problem(s.model, s.pretrained, s.experts, example, **chosen)


def run(s, steps, **options):
    return fbl.adapt("metamerging", *s.arguments(), steps, **options)


def named(want: oracle.Outcome) -> dict[str, torch.Tensor]:
    return {"raw": want.raw, **{f"{t}/{n}": v for t, own in want.adapters.items() for n, v in own.items()}}


def compare(s, steps: int, tolerance: float, **options):
    """Run both; raw, adapters, losses, features and merged weights have to agree. Returns (adapted, outcome)."""
    want = oracle.run(problem_of(s, **options), s.batches, steps, **{k: v for k, v in options.items() if k not in OF_PROBLEM})
    got = run(s, steps, **options)
    dtype = next(iter(s.pretrained.values())).dtype
    check_learned(got.learned, named(want), tolerance, dtype)
    check_losses(got.losses, want.losses, max(10 * tolerance, 1e-9))
    check_encode(got, want.encode, s, max(10 * tolerance, 1e-9))
    assert set(got.coefficients) >= set(touched(s.pretrained))
    assert all(float((v.double() - want.coefficients).abs().max()) <= tolerance for v in got.coefficients.values())
    check_passthrough(got.state_dict(), s.pretrained)
    assert all(distance(got.state_dict()[n], want.state[n]) <= 10 * tolerance for n in touched(s.pretrained))
    return got, want


CASES = [
    {},
    {"order": "first"},
    {"inner_steps": 0},
    {"inner_steps": 5, "rank": 8},
    {"inner_steps": 5, "order": "first", "inner_lr": 0.02, "adapter_steps": 0},
    {"adapters": "final", "raw": -1.5},
    {"adapters": "final", "inner_steps": 5, "loss": "norm"},
    {"adapters": "none"},
    {"adapters": "none", "inner_steps": 5, "loss": "norm", "optimizer": "sgd"},
    {"loss": "norm", "lr": 0.03, "seed": 3},
    {"optimizer": "sgd", "adapter_steps": 3},
    {"optimizer": "sgd", "order": "first", "adapters": "final", "adapter_steps": 10},
]


def identify(options):
    return "-".join(f"{k}={v}" for k, v in options.items()) or "default"


def batches_needed(steps: int, options: dict) -> int:
    second = options.get("adapter_steps", steps // 2)
    inner = options.get("inner_steps", 1)
    return steps if options.get("adapters") == "none" else (steps - second) * (inner + 1) + second


@pytest.mark.parametrize("options", CASES, ids=identify)
@DTYPES
def test_ten_steps(options, dtype):
    """From exactly as many batches as the draws are."""
    if dtype == torch.float32 and options.get("inner_steps") == 5:
        options = {**options, "inner_steps": 2}
    s = small_setting(Transformer(pair=dtype == DOUBLE), tasks=2, dtype=dtype, steps=batches_needed(10, options))
    compare(s, 10, 1e-9 if dtype == DOUBLE else 1e-5, **options)


@pytest.mark.parametrize("tasks", [1, 3])
def test_other_task_counts(tasks):
    compare(small_setting(tasks=tasks, seed=2, steps=30), 10, 1e-9, inner_steps=2)


@pytest.mark.parametrize("adapters", ["blocks", "final"])
def test_other_models(adapters):
    compare(small_setting(FlatPerceptron(), shape=(3,), steps=20), 6, 1e-9, adapters=adapters)
    compare(setting(dtype=DOUBLE, blocks=2, steps=20), 4, 1e-9, adapters=adapters)  # open_clip's names, unused tensors
    if adapters == "final":
        compare(small_setting(NoBlocks(), steps=20), 6, 1e-9, adapters=adapters)


# ---------------------------------------------------------------- the hypergradient


def after_one_step(s, raw: float, **options) -> torch.Tensor:
    """What plain gradient descent of rate 1 subtracts from raw in its first step."""
    return raw - run(s, 1, raw=raw, optimizer="sgd", lr=1.0, adapter_steps=0, **options).learned["raw"]


@pytest.mark.parametrize("inner_steps", [0, 1, 5])
@pytest.mark.parametrize("options", [{}, {"adapters": "final"}, {"loss": "norm"}, {"adapters": "none"}], ids=identify)
def test_second_order_gradient_against_finite_differences(inner_steps, options):
    s = small_setting(tasks=2, steps=inner_steps + 1, seed=3)
    options = {"rank": 4, **options}  # few relus, so that none switches within the differences
    raw, p = -0.7, problem_of(s, **options)
    if p.adapters == "none":
        inner_steps = 0
    drawn = {t: b[: inner_steps + 1] for t, b in s.batches.items()}
    value = torch.full((2,), raw, dtype=DOUBLE)
    differences = oracle.finite_differences(p, value, drawn, 0.1)
    second = after_one_step(s, raw, inner_steps=inner_steps, **options)
    assert distance(second, differences) <= 1e-7
    assert distance(oracle.hypergradient(p, value, drawn, 0.1), differences) <= 1e-7
    first = after_one_step(s, raw, inner_steps=inner_steps, order="first", **options)
    assert distance(first, oracle.hypergradient(p, value, drawn, 0.1, "first")) <= 1e-9
    if inner_steps == 0:
        assert torch.equal(first, second)
    else:
        assert distance(first, differences) > 1e-3


def test_gradient_against_finite_differences_of_the_reported_loss():
    """The first loss as a function of the one initial raw value: no oracle takes part."""
    s = small_setting(tasks=2, steps=3, seed=5)
    h, o = 2e-5, {"inner_steps": 2, "rank": 4}

    def slope(width):
        return float(run(s, 1, raw=-1 + width, **o).losses[0] - run(s, 1, raw=-1 - width, **o).losses[0]) / (2 * width)

    differences = (4 * slope(h / 2) - slope(h)) / 3
    assert float(after_one_step(s, -1.0, **o).sum()) == pytest.approx(differences, rel=1e-6)


@pytest.mark.parametrize("order", ["first", "second"])
def test_an_inner_rate_of_zero_is_no_inner_step(order):
    s = small_setting(tasks=2, steps=20)
    with_inner = run(s, 10, inner_steps=1, inner_lr=0, order=order, adapter_steps=0)
    s.batches = {t: b[1::2] for t, b in s.batches.items()}
    without = run(s, 10, inner_steps=0, adapter_steps=0)
    assert torch.allclose(with_inner.learned["raw"], without.learned["raw"], rtol=0, atol=1e-12)
    assert torch.allclose(with_inner.losses, without.losses, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- two stages


@DTYPES
def test_zero_steps(dtype):
    s = small_setting(tasks=8, dtype=dtype)
    x = s.batches["task0"][0]
    s.batches = {t: [] for t in s.experts}
    got = run(s, 0)
    weight = math.log1p(math.exp(-2.014))
    assert float(next(iter(got.coefficients.values())).sum()) == pytest.approx(1.003, abs=1e-3)
    static = fbl.merge("task_arithmetic", s.pretrained, s.experts, scaling=weight).state_dict()
    assert all(distance(got.state_dict()[n], static[n]) <= (1e-12 if dtype == DOUBLE else 1e-6) for n in touched(static))
    plain = run(s, 0, adapters="none")
    with torch.no_grad():
        assert torch.equal(plain.encode(x, "task0"), functional_call(s.model.eval(), plain.state_dict(), (x,)))
    assert distance(got.encode(x, "task0"), plain.encode(x, "task0")) < 0.01  # adapters start near the identity
    assert not torch.equal(got.encode(x, "task0"), plain.encode(x, "task0"))


def test_stage_one_leaves_the_adapters_and_stage_two_the_coefficients():
    s = small_setting(tasks=2, steps=25)
    start = problem_of(s).start
    learning = run(s, 10, adapter_steps=0)
    for task, phi in start.items():
        assert all(torch.equal(learning.learned[f"{task}/{n}"].double(), v) for n, v in phi.items())
    both = run(s, 15, adapter_steps=5)
    assert torch.equal(both.learned["raw"], learning.learned["raw"])
    assert torch.equal(both.losses[:10], learning.losses)
    assert same_bits(both.state_dict(), learning.state_dict())
    assert all(not torch.equal(both.learned[f"{t}/{n}"].double(), v) for t, phi in start.items() for n, v in phi.items())


def test_the_default_gives_half_of_the_steps_to_the_adapters():
    s = small_setting(tasks=2, steps=20)
    for steps in (6, 7):
        assert same_bits(run(s, steps).learned, run(s, steps, adapter_steps=3).learned)


@pytest.mark.parametrize("order", ["first", "second"])
def test_an_expert_equal_to_the_base_has_no_gradient(order):
    s = small_setting(tasks=2, steps=20)
    s.experts["task1"] = snapshot(s.pretrained)
    raw = run(s, 10, adapter_steps=0, order=order).learned["raw"]
    assert float(raw[1]) == -2.014
    assert float(raw[0]) != -2.014


def test_no_adapters_draw_no_inner_batches():
    s = small_setting(tasks=2, steps=4)
    a, b = (run(s, 4, adapters="none", inner_steps=n, adapter_steps=m) for n, m in ((0, 0), (7, None)))
    assert same_bits(a.learned, b.learned)
    assert list(a.learned) == ["raw"]


# ---------------------------------------------------------------- adapters on given weights


@pytest.mark.parametrize("adapters", ["blocks", "final"])
@pytest.mark.parametrize("given", ["base", "merged"])
@DTYPES
def test_adapters_on_given_weights(adapters, given, dtype):
    """Nothing but adapters is learned, in all steps, without inner batches."""
    s = small_setting(tasks=2, steps=6, dtype=dtype)
    merged = fbl.merge("ties_merging", s.pretrained, s.experts).state_dict()
    option = {"base": "ties_merging"} if given == "base" else {"merged": snapshot(merged)}
    got = run(s, 6, adapters=adapters, rank=5, adapter_lr=0.01, **option)
    p = problem_of(s, adapters=adapters, rank=5)
    want = oracle.learn_adapters(p, double(merged), s.batches, 6, 0.01)
    tolerance = 1e-9 if dtype == DOUBLE else 1e-5
    learned = {f"{t}/{n}": v for t, own in want.adapters.items() for n, v in own.items()}
    check_learned(got.learned, learned, tolerance, dtype)
    check_losses(got.losses, want.losses, max(10 * tolerance, 1e-9))
    check_encode(got, want.encode, s, max(10 * tolerance, 1e-9))
    assert got.coefficients == {}
    assert same_bits(got.state_dict(), merged)


# ---------------------------------------------------------------- laws


def test_identical_tasks_stay_identical():
    s = small_setting(tasks=3, steps=10)
    for part in (s.experts, s.batches):
        part["task2"] = copy.deepcopy(part["task1"])
    raw = run(s, 10, adapters="none").learned["raw"]
    assert float((raw[1] - raw[2]).abs()) <= 1e-10
    assert float((raw[0] - raw[1]).abs()) > 1e-4


@pytest.mark.parametrize("steps", [{"adapter_steps": 0}, {"adapter_steps": 1}])
def test_without_adapters_the_merged_weights_are_judged(steps):
    """What is learned is the same; features are those of θ0 + Σ λ τ with nothing behind the blocks."""
    s = setting(dtype=DOUBLE, blocks=2, steps=20)
    plain, got = run(s, 4, **steps), run(s, 4, judged="merged", **steps)
    assert all(torch.equal(plain.learned[name], got.learned[name]) for name in plain.learned)
    with torch.no_grad():
        for task, batches in s.batches.items():
            want = functional_call(s.model, got.state_dict(), batches[0])
            assert distance(got.encode(batches[0], task), want) <= 1e-12
            if steps["adapter_steps"]:
                assert distance(plain.encode(batches[0], task), want) > 1e-9
