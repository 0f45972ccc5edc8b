"""Laws of WEMoE and Twin-Merging (docs/decisions.md, D20): starts, gradients, what batches may not change."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

import fusionbench_lite as fbl
from fusionbench_lite.adaptation import draws
from tests.oracles import routing
from tests.support.adapter_checks import check_learned, gradient_of
from tests.support.helpers import distance, same_bits, touched
from tests.support.laws import costly
from tests.support.small_models import NoBlocks, small_setting

DOUBLE = torch.float64


def run(method, s, steps, **options):
    return fbl.adapt(method, *s.arguments(), steps, **options)


# ---------------------------------------------------------------- the start of WEMoE


def without_second_layer(monkeypatch):
    """Draw zeros for W2 [T, d] of the routers."""
    original = draws.normal

    def normal(shape, *key):
        return torch.zeros(tuple(shape)) if key[-1] == "output" else original(shape, *key)

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("fusionbench_lite") and getattr(module, "normal", None) is original:
            monkeypatch.setattr(module, "normal", normal)


@pytest.mark.parametrize("routing_", ["example", "batch"])
@pytest.mark.parametrize("scaling", [0.3, 0.8])
def test_a_zero_second_layer_is_task_arithmetic(monkeypatch, routing_, scaling):
    s = small_setting(tasks=2)
    static = fbl.merge("task_arithmetic", s.pretrained, s.experts, scaling=scaling).state_dict()
    drawn = run("wemoe", s, 0, routing=routing_, scaling=scaling)
    without_second_layer(monkeypatch)
    flat = run("wemoe", s, 0, routing=routing_, scaling=scaling)
    for x in s.batches["task0"]:
        want = functional_call(s.model.eval(), static, (x,))
        assert distance(flat.encode(x, "task0"), want) <= 1e-12
        assert distance(drawn.encode(x, "task0"), want) > 1e-6
    got, _ = compare_flat(s, scaling, routing_)
    assert float(got.losses[0]) == pytest.approx(entropy_of(s, static), rel=1e-12)


def compare_flat(s, scaling, routing_):
    options = {"routing": routing_, "scaling": scaling, "lr": 0.01}
    want = routing.wemoe(s.model, s.pretrained, s.experts, s.heads, s.batches, 3, flat=True, **options)
    got = run("wemoe", s, 3, **options)
    check_learned(got.learned, want.learned, 1e-9, DOUBLE)
    return got, want


def entropy_of(s, state) -> float:
    """Sum over tasks of the mean entropy of the first batches."""
    with torch.no_grad():
        features = {t: functional_call(s.model.eval(), state, (s.batches[t][0],)) for t in s.experts}
        return float(sum(routing.entropy(s.heads[t](x)) for t, x in features.items()))


def test_routing_by_example_is_routing_of_batches_of_one():
    s = small_setting(tasks=2)
    by_example, by_batch = (run("wemoe", s, 0, routing=r) for r in ("example", "batch"))
    x = s.batches["task0"][1]
    together = by_example.encode(x, "task0")
    assert distance(torch.cat([by_batch.encode(one[None], "task0") for one in x]), together) <= 1e-12
    assert distance(by_batch.encode(x, "task0"), together) > 1e-7


def test_cosine_schedule_starts_at_the_rate_and_ends_slowly():
    s = small_setting(tasks=2)
    assert same_bits(run("wemoe", s, 1).learned, run("wemoe", s, 1, schedule="constant").learned)
    a, b = (run("wemoe", s, n, lr=0.01) for n in (9, 10))
    assert not same_bits(a.learned, b.learned)
    moved = max(float((v - run("wemoe", s, 0).learned[n]).abs().max()) for n, v in b.learned.items())
    assert moved <= 3.17 * 0.01 * sum((1 + math.cos(math.pi * i / 10)) / 2 for i in range(10))


# ---------------------------------------------------------------- gradients


def slope(loss, at: float, width: float = 1e-4) -> float:
    """Central differences with Richardson's extrapolation."""

    def central(h):
        return (loss(at + h) - loss(at - h)) / (2 * h)

    return (4 * central(width / 2) - central(width)) / 3


def test_wemoe_gradient_against_finite_differences():
    """The first loss as a function of b2, which `scaling` sets; with one task and nothing else to scale."""
    s = small_setting(NoBlocks(), tasks=1)
    s.experts["task0"].update({n: v for n, v in s.pretrained.items() if not n.startswith("mlp")})
    want = slope(lambda scaling: float(run("wemoe", s, 1, scaling=scaling).losses[0]), 0.3)
    change = run("wemoe", s, 1, lr=1.0).learned["mlp/output_bias"] - 0.3
    assert float(gradient_of(change, 1.0)) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("router", ["tasks", "entropy"])
def test_twin_gradient_against_finite_differences(router):
    """The oracle's first loss as a function of the last bias, by moving its draw; nothing is differentiated."""
    s, options = small_setting(tasks=2), {"router": router, "rank_ratio": 0.5, "dropout": 0.2}
    start, after = (run("twin_merging", s, n, lr=1.0, **options).learned["2/bias"] for n in (0, 1))
    got, original = gradient_of(after - start, 1.0), routing.uniform
    for t in range(2):

        def loss(at, t=t):
            def moved(shape, *key):
                value = original(shape, *key).double()
                if key[-2:] == (2, "bias"):
                    value[t] = (at * 12**0.5 + 1) / 2
                return value

            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(routing, "uniform", moved)
                arguments = (s.model, s.pretrained, s.experts, s.heads, s.batches, 1)
                return float(routing.twin_merging(*arguments, **options).losses[0])

        assert float(got[t]) == pytest.approx(slope(loss, float(start[t])), rel=1e-6)


# ---------------------------------------------------------------- Twin-Merging


def test_zero_dropout_and_known_tasks_learn_to_tell_tasks_apart():
    s = small_setting(tasks=2, steps=1)
    s.batches = {t: [x + 3 * i for x in b] * 60 for i, (t, b) in enumerate(s.batches.items())}
    losses = run("twin_merging", s, 60, dropout=0, lr=0.02).losses
    assert float(losses[0]) > 0.3
    assert float(losses[-1]) < 0.05


def test_biases_stay_pretrained_and_full_vectors_restore_an_expert():
    s = small_setting(tasks=1)
    got = run("twin_merging", s, 3, rank_ratio=1.0)  # one task: its softmax is 1
    state = got.state_dict()
    biases = [n for n in touched(s.pretrained) if n.endswith("bias")]
    assert biases
    assert all(torch.equal(state[n], s.pretrained[n]) for n in biases)
    restored = {**s.experts["task0"], **{n: s.pretrained[n] for n in biases}}
    x = s.batches["task0"][0]
    assert distance(got.encode(x, "task0"), functional_call(s.model.eval(), restored, (x,))) <= 1e-10


@pytest.mark.parametrize("router", ["tasks", "entropy"])
def test_features_do_not_depend_on_the_rest_of_the_batch(router):
    got = run("twin_merging", s := small_setting(tasks=2), 4, router=router, rank_ratio=0.5)
    x = s.batches["task1"][1]
    alone = torch.cat([got.encode(one[None], "task1") for one in x])
    assert distance(got.encode(x, "task1"), alone) <= 1e-12


def test_batch_normalisation_cancels_the_biases_before_it():
    start, got = (run("twin_merging", small_setting(tasks=2), n, lr=0.01).learned for n in (0, 10))
    for name in ("0/bias", "1/bias"):
        assert float((got[name] - start[name]).abs().max()) <= 1e-6
    assert float((got["2/bias"] - start["2/bias"]).abs().min()) > 1e-3


# ---------------------------------------------------------------- laws


@costly(6)
@given(seed=st.integers(0, 999), order=st.permutations(["task0", "task1", "task2"]))
def test_permutation_of_tasks(seed, order):
    """WEMoE's T rows are drawn as one block, so only what starts alike is permuted: b2, from W2 = 0 or after one step."""
    s = small_setting(tasks=3, steps=2, seed=seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_second_layer(monkeypatch)
        a, b = (run("wemoe", x, 2, lr=0.01) for x in (s, s.permuted(order)))
    index = [list(s.experts).index(t) for t in order]
    for name, value in a.learned.items():
        want = value[index] if "/output" in name else value
        assert torch.allclose(want, b.learned[name], rtol=0, atol=1e-7), name
    assert torch.allclose(a.losses, b.losses, rtol=1e-9)
