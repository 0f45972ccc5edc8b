"""Laws that adapters and routers share (docs/decisions.md, D20)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.oracles.surgery import double
from tests.support.adapter_checks import unmodified
from tests.support.helpers import check_passthrough, distance, refused, same_bits, snapshot, touched
from tests.support.laws import costly
from tests.support.small_models import Transformer, small_setting

SURGERY = ["surgery", "surgery_v2", "prob_surgery"]
ALL = [*SURGERY, "metamerging", "wemoe", "twin_merging"]
each = pytest.mark.parametrize("method", ALL)


def run(method, s, steps, **options):
    return fbl.adapt(method, *s.arguments(), steps, **options)


def batches_for(method: str, steps: int) -> int:
    return 2 * steps if method == "metamerging" else steps


@each
def test_inputs_stay_as_they_were(method):
    """Neither the flags of parameters nor training mode matter; callers without gradients get the same bits."""
    s = small_setting(Transformer(pair=True), tasks=2, dtype=torch.float32)
    plain = run(method, s, 4, lr=0.05)
    s.model.train()
    for i, parameter in enumerate(s.model.parameters()):
        parameter.requires_grad_(i % 3 != 0)
    with unmodified(s):
        got = run(method, s, 4, lr=0.05)
        got.encode(s.batches["task0"][0], "task0")
        with torch.no_grad():
            again = run(method, s, 4, lr=0.05)
    assert same_bits(plain.learned, got.learned)
    assert same_bits(again.learned, got.learned)
    with refused("task9"):
        got.encode(s.batches["task0"][0], "task9")


@each
def test_what_comes_back_is_not_shared(method):
    s = small_setting(tasks=2)
    got = run(method, s, 2)
    check_passthrough(got.state_dict(), s.pretrained)
    assert got.masks == {}
    x, first = s.batches["task0"][0], snapshot(got.state_dict())
    features = got.encode(x, "task0").clone()
    for value in got.state_dict().values():
        value.zero_()
    assert same_bits(got.state_dict(), first)
    assert torch.equal(got.encode(x, "task0"), features)
    assert torch.equal(got.encode(x.clone(), "task0"), features)


@each
def test_iterators_serve_as_batches_and_are_read_one_ahead_at_most(method):
    s = small_setting(tasks=2, steps=10)
    want = run(method, s, 4)
    full = s.batches
    s.batches = {t: iter(b) for t, b in full.items()}
    assert same_bits(run(method, s, 4).learned, want.learned)
    left = 10 - (6 if method == "metamerging" else 4)
    assert all(len(list(stream)) in (left, left - 1) for stream in s.batches.values())


@costly(12)
@given(seed=st.integers(0, 999), method=st.sampled_from(ALL), steps=st.integers(1, 4), lr=st.sampled_from([1e-4, 0.1]))
def test_values_move_at_most_like_adam(seed, method, steps, lr):
    """And the same call gives the same bits."""
    s = small_setting(tasks=2, steps=batches_for(method, steps), seed=seed, dtype=torch.float32)
    options = {"adapter_steps": 0} if method == "metamerging" else {}
    first, got = (run(method, s, n, lr=lr, **options).learned for n in (1, steps))
    moved = {n: float((v - first[n]).abs().max()) for n, v in got.items() if "running" not in n and "batches" not in n}
    assert max(moved.values()) <= 3.17 * lr * steps + 1e-6
    assert max(moved.values()) > 0 or steps == 1
    assert same_bits(run(method, s, steps, lr=lr, **options).learned, got)


@costly(8)
@given(seed=st.integers(0, 999), method=st.sampled_from(SURGERY), order=st.permutations(["task0", "task1", "task2"]))
def test_surgery_does_not_depend_on_the_order_of_tasks(seed, method, order):
    s = small_setting(tasks=3, steps=3, seed=seed)
    merged = fbl.merge("task_arithmetic", s.pretrained, s.experts).state_dict()
    a, b = (run(method, x, 3, merged=merged) for x in (s, s.permuted(order)))
    assert set(a.learned) == set(b.learned)
    assert all(torch.allclose(v, b.learned[n], rtol=0, atol=1e-12) for n, v in a.learned.items())
    assert torch.allclose(a.losses, b.losses, atol=1e-12)


@costly(6)
@given(
    seed=st.integers(0, 999), order=st.permutations(["task0", "task1", "task2"]),
    options=st.fixed_dictionaries({"order": st.sampled_from(["first", "second"]), "inner_steps": st.integers(0, 2)}),
)
def test_metamerging_does_not_depend_on_the_order_of_tasks(seed, order, options):
    s = small_setting(tasks=3, steps=10, seed=seed)
    a, b = (run("metamerging", x, 4, adapter_steps=1, **options) for x in (s, s.permuted(order)))
    index = [list(s.experts).index(t) for t in order]
    assert torch.allclose(a.learned["raw"][index], b.learned["raw"], rtol=0, atol=1e-8)
    for name in set(a.learned) - {"raw"}:
        assert torch.allclose(a.learned[name], b.learned[name], rtol=0, atol=1e-6), name
    assert torch.allclose(a.losses, b.losses, rtol=1e-9)


@costly(6)
@given(seed=st.integers(0, 999), steps=st.integers(0, 3), lr=st.sampled_from([1e-4, 0.01, 0.3]))
def test_metamerging_reports_the_weights_of_its_coefficients(seed, steps, lr):
    """theta0 + sum_t softplus(raw_t) tau_t, rebuilt from the reported raw values alone."""
    s = small_setting(tasks=2, steps=6, seed=seed)
    got = run("metamerging", s, steps, lr=lr, adapter_steps=0)
    weights = F.softplus(got.learned["raw"].double())
    assert all(torch.allclose(v.double(), weights, rtol=1e-12) for v in got.coefficients.values())
    base, experts = double(s.pretrained), [double(e) for e in s.experts.values()]
    for name in touched(s.pretrained):
        want = base[name] + sum(w * (e[name] - base[name]) for w, e in zip(weights, experts, strict=True))
        assert distance(got.state_dict()[name], want) <= 1e-12


@pytest.mark.parametrize(
    ("method", "steps", "options", "ratio"),
    [
        *((m, 60, {"lr": 3e-3}, 0.8) for m in SURGERY),
        ("metamerging", 80, {"adapter_steps": 0, "inner_steps": 0}, 0.95),
        ("metamerging", 60, {"adapter_steps": 60, "adapter_lr": 1e-2}, 0.8),
        ("wemoe", 40, {"lr": 0.01}, 0.8),
        ("twin_merging", 60, {"lr": 0.01, "dropout": 0}, 0.8),
    ],
)
def test_the_loss_falls_when_batches_repeat(method, steps, options, ratio):
    s = small_setting(tasks=2, steps=1)
    s.batches = {t: b * steps for t, b in s.batches.items()}
    losses = run(method, s, steps, **options).losses
    assert float(losses[-1]) < ratio * float(losses[0])


# ---------------------------------------------------------------- memory


class ShortOfMemory(Transformer):
    """Refuses more than two examples, and its fifth forward pass: there a step is half done."""

    calls = 0  # of the class: a method may run a copy of the model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ShortOfMemory.calls += 1
        if ShortOfMemory.calls == 5 or len(x) > 2:
            raise torch.OutOfMemoryError("simulated")
        return super().forward(x)


@each
def test_memory_runs_out(method):
    """Smaller chunks repeat nothing and lose nothing."""
    s, short = (small_setting(model, tasks=2, steps=8) for model in (None, ShortOfMemory()))
    ShortOfMemory.calls = 0
    options = {"router": "entropy"} if method == "twin_merging" else {}
    want, got = (run(method, x, 4, lr=0.01, **options) for x in (s, short))
    assert ShortOfMemory.calls > 8
    if method == "twin_merging":  # biases that batch normalisation cancels
        want.learned.update({n: got.learned[n] for n in ("0/bias", "1/bias")})
    assert all(torch.allclose(v, got.learned[n], rtol=0, atol=1e-10) for n, v in want.learned.items())
    assert torch.allclose(want.losses, got.losses, rtol=0, atol=1e-12)
    x = s.batches["task0"][1]
    assert len(x) > 2
    assert torch.allclose(want.encode(x, "task0"), got.encode(x, "task0"), rtol=0, atol=1e-9)


def test_batches_that_are_routed_as_a_whole_are_not_split():
    with refused("memory", "batch_size"):
        run("wemoe", small_setting(ShortOfMemory(), tasks=2), 4, routing="batch")
