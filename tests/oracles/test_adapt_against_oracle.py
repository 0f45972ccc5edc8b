"""`fbl.adapt` against plain float64 autograd through the merge with torch.optim.Adam, from the same batches."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite.adaptation.engine.core import restoring
from tests.oracles import adaptive
from tests.support.helpers import (
    Head,
    Setting,
    check_passthrough,
    check_state,
    distance,
    experts_of,
    rng,
    setting,
    snapshot,
)

DOUBLE = torch.float64
ADARANK = {"ta": (0.3, 1.0), "cart": (2.3, 0.16), "tsvm": (1.0, None)}


def problem_of(method: str, s, **given) -> adaptive.Problem:
    """The oracle's problem for a method id and the hyperparameters that differ from its defaults."""
    given = {k: v for k, v in given.items() if k != "lr"}
    family, kind = method.split("_", 1)
    if kind in ("taskwise", "layerwise"):
        return adaptive.adamerging(s.pretrained, s.experts, kind.removesuffix("wise"), **given)
    scaling, ratio = ADARANK[kind]
    if family == "adamerging":
        given["learn"] = "coefficients"
    return adaptive.adarank(kind, s.pretrained, s.experts, **{"scaling": scaling, "rank_ratio": ratio, **given})


def compare(method: str, s, steps: int, tolerance: float, undecided: float = 0.0, **given):
    """Run both; coefficients, bits, losses and merged weights have to agree. Returns (adapted, oracle outcome)."""
    problem = problem_of(method, s, **given)
    want = adaptive.run(problem, s.model, s.heads, s.batches, steps, given.get("lr", 1e-3))
    got = fbl.adapt(method, *s.arguments(), steps, **given)
    check_coefficients(got, problem, want, tolerance)
    assert set(got.masks) == set(want.masks if method.startswith("adarank") else [])
    agree = True
    for name, mask in got.masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == want.masks[name].shape
        differs = mask != want.masks[name]
        assert bool((want.logits[name][differs].abs() <= undecided).all()), (name, want.logits[name][differs])
        agree = agree and not bool(differs.any())
    assert got.losses.shape == (steps,)
    if steps:
        assert distance(got.losses, want.losses) <= max(10 * tolerance, 1e-9)
    if agree:
        expected = {n: v.numpy() for n, v in want.state.items()}
        check_state(got.state_dict(), expected, s.pretrained, 50 * tolerance)
    return got, want


def check_coefficients(got, problem, want, tolerance):
    assert problem.taskwise or set(got.coefficients) >= set(want.coefficients)
    for name, value in got.coefficients.items():
        assert value.shape == (len(problem.tasks),)
        if not problem.taskwise and name not in want.coefficients:
            assert bool((value == problem.scaling).all()), name  # a scalar or empty tensor that never takes part
            continue
        expected = want.coefficients["*" if problem.taskwise else name]
        error = float((value.double() - expected).abs().max())
        if problem.clamp:  # the clamped value may be reported too
            error = min(error, float((value.double() - expected.clamp(0, 1)).abs().max()))
        assert error <= tolerance, f"{name}: {error:.2e}"


METHODS = [
    ("adamerging_taskwise", {}),
    ("adamerging_taskwise", {"clamp": False, "lr": 0.01}),
    ("adamerging_layerwise", {}),
    ("adamerging_layerwise", {"clamp": False, "scaling": 0.5, "lr": 0.02}),
    ("adarank_ta", {}),
    ("adarank_ta", {"rank_ratio": 0.5, "scaling": 0.4}),
    ("adarank_ta", {"matrices": "all_2d"}),
    ("adarank_cart", {}),
    ("adarank_cart", {"rank_ratio": 0.5, "temperature": 1.0, "learn": "coefficients"}),
    ("adarank_cart", {"rank_ratio": 0.3, "top_only": True}),
    ("adarank_tsvm", {}),
    ("adarank_tsvm", {"rank_ratio": 0.5, "learn": "masks"}),
]


def identify(case):
    return case[0] + "".join(f"-{k}={v}" for k, v in case[1].items())


@pytest.mark.parametrize("case", METHODS, ids=identify)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])
def test_ten_steps(case, dtype):
    method, given = case
    s = setting(dtype=dtype, blocks=2 if dtype == DOUBLE else 1)
    compare(method, s, 10, 1e-9 if dtype == DOUBLE else 1e-5, **given)


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_ta", "adarank_cart", "adarank_tsvm"])
@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_other_task_counts(method, tasks):
    compare(method, setting(tasks=tasks, seed=2, steps=5, dtype=DOUBLE), 5, 1e-9, lr=0.01)


@functools.cache
def long_setting(dtype):
    return setting(steps=60, seed=1, dtype=dtype, blocks=2)


FLIPPING = [
    ("adarank_ta", {}),
    ("adarank_ta", {"learn": "masks", "rank_ratio": 0.5, "temperature": 0.5}),
    ("adarank_cart", {"rank_ratio": 0.4}),
    ("adarank_cart", {"rank_ratio": 0.7, "top_only": True}),
    ("adarank_tsvm", {"matrices": "all_2d"}),
]


@pytest.mark.parametrize("case", FLIPPING, ids=identify)
def test_long_run_with_flipping_bits_in_double_precision(case):
    method, given = case[0], {"lr": 0.02, **case[1]}
    s = long_setting(DOUBLE)
    got, want = compare(method, s, 60, 1e-7, **given)
    start = adaptive.run(problem_of(method, s, **given), s.model, s.heads, s.batches, 0, 1e-3).masks
    flipped = sum(int((got.masks[n] != start[n]).sum()) for n in start)
    pairs = itertools.pairwise(want.mask_history)
    moments = sum(any(not torch.equal(a[n], b[n]) for n in a) for a, b in pairs)
    assert flipped >= 20, flipped
    assert moments >= 10, moments


@pytest.mark.parametrize("method", ["adarank_ta", "adarank_cart", "adarank_tsvm"])
def test_long_run_in_single_precision(method):
    """Float32 noise may move a bit that is about to flip by a step, so the run stops at 40 steps of 0.006."""
    s = long_setting(torch.float32)
    got, _ = compare(method, s, 40, 1e-3, undecided=2e-3, lr=0.006)
    start = adaptive.run(problem_of(method, s), s.model, s.heads, s.batches, 0, 1e-3).masks
    assert sum(int((got.masks[n] != start[n]).sum()) for n in start) >= 5


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adamerging_taskwise"])
def test_long_adamerging(method):
    compare(method, setting(steps=40, seed=1, dtype=DOUBLE), 40, 1e-8, lr=0.02)


# ---------------------------------------------------------------- other inputs


class TokenEncoder(torch.nn.Module):
    """Token ids in, features out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 6))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.embedding(tokens)).mean(1)


def token_setting(g: torch.Generator) -> Setting:
    model = TokenEncoder().double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=DOUBLE) * 0.5)
    base = snapshot(model.state_dict())
    experts = experts_of(base, 2)
    heads = {t: Head(6, 3 + i, i, DOUBLE) for i, t in enumerate(experts)}
    batches = {t: [torch.randint(0, 11, (4, 7), generator=g) for _ in range(6)] for t in experts}
    return Setting(model, base, experts, heads, batches)


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_ta"])
def test_integer_inputs(method):
    compare(method, token_setting(rng(21)), 6, 1e-9, lr=0.01)


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_cart"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_half_precision_model(method, dtype):
    """Forward passes in half precision: the loss agrees to its precision, coefficients to Adam's bound."""
    s = setting(steps=4, dtype=dtype)
    want = adaptive.run(problem_of(method, s), s.model, s.heads, s.batches, 4, 1e-3)
    got = fbl.adapt(method, *s.arguments(), 4)
    check_passthrough(got.state_dict(), s.pretrained)
    assert distance(got.losses, want.losses) < 0.05
    for name, value in got.coefficients.items():
        if name in want.coefficients:
            assert float((value - want.coefficients[name]).abs().max()) <= 2 * 3.17e-3 * 4
    shared = [n for n in got.coefficients if n in want.coefficients]
    near = [float((got.coefficients[n] - want.coefficients[n]).abs().max()) < 1e-3 for n in shared]
    assert sum(near) > 0.6 * len(near)


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_cart"])
def test_inputs_of_different_shapes(method):
    g = rng(22)
    s = token_setting(g)
    s.batches["task1"] = [torch.randint(0, 11, (5, 3 + i % 2), generator=g) for i in range(6)]
    compare(method, s, 6, 1e-9, lr=0.01)


class ShortOfMemory(TokenEncoder):
    """Refuses more than two examples, and its fifth forward pass: there the step is half accumulated."""

    calls = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 5 or len(tokens) > 2:
            raise torch.OutOfMemoryError("simulated")
        return super().forward(tokens)


@pytest.mark.parametrize("method", ["adamerging_taskwise", "adarank_ta"])
@pytest.mark.parametrize("width", [7, 4])
def test_memory_runs_out(method, width):
    """Halving the chunk repeats nothing and loses nothing, also when part of a step has been accumulated."""
    s = token_setting(rng(23))
    s.batches["task1"] = [x[:, :width] for x in s.batches["task1"]]
    want = fbl.adapt(method, *s.arguments(), 6, lr=0.01)
    short = ShortOfMemory().double()
    short.load_state_dict(s.model.state_dict())
    got = fbl.adapt(method, short, *s.arguments()[1:], 6, lr=0.01)
    assert short.calls > 12
    assert all(torch.allclose(v, got.coefficients[n], atol=1e-10) for n, v in want.coefficients.items())
    assert torch.allclose(want.losses, got.losses, atol=1e-12)


def test_gradients_are_put_back_as_often_as_memory_runs_out():
    started, fresh = (torch.zeros(2, requires_grad=True) for _ in range(2))
    started.grad = torch.ones(2)
    restore = restoring([started, fresh])
    for _ in range(2):
        (started.sum() + fresh.sum()).backward()
        started.grad.mul_(3)  # in place, as autograd adds
        restore()
        assert torch.equal(started.grad, torch.ones(2))
        assert fresh.grad is None


# ---------------------------------------------------------------- clamp


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adamerging_taskwise"])
@pytest.mark.parametrize(
    ("scaling", "clamp"), [*((v, True) for v in (0.0, 1.0, -0.1, 1.1, 0.98, 0.02)), (0.0, False), (1.1, False)]
)
def test_clamp_boundaries(method, scaling, clamp):
    s = setting(steps=5, seed=3, dtype=DOUBLE)
    got, _ = compare(method, s, 5, 1e-9, scaling=scaling, clamp=clamp, lr=0.03)
    values = torch.stack(list(got.coefficients.values())).double()
    if clamp and scaling in (-0.1, 1.1):  # outside the interval there is no gradient: nothing moves
        assert bool(((values == scaling) | (values == min(max(scaling, 0), 1))).all())
    elif method == "adamerging_taskwise":
        assert bool((values != scaling).all() | clamp)


# ---------------------------------------------------------------- adaptation of constant updates


@pytest.mark.parametrize("method", ["adamerging_tsvm", "adamerging_cart"])
def test_adamerging_on_other_starts_is_adarank_with_frozen_masks(method):
    if method not in fbl.methods():
        pytest.skip(f"{method} is not there yet")
    s = setting(dtype=DOUBLE)
    kind = method.split("_")[1]
    got = fbl.adapt(method, *s.arguments(), 10)
    frozen = fbl.adapt(f"adarank_{kind}", *s.arguments(), 10, learn="coefficients")
    assert set(got.coefficients) == set(frozen.coefficients)
    assert all(torch.allclose(v, frozen.coefficients[n], atol=1e-9) for n, v in got.coefficients.items())
    scaling, ratio = ADARANK[kind]
    problem = adaptive.adarank(kind, s.pretrained, s.experts, scaling, ratio, learn="coefficients")
    check_coefficients(got, problem, adaptive.run(problem, s.model, s.heads, s.batches, 10, 1e-3), 1e-9)
    check_passthrough(got.state_dict(), s.pretrained)
