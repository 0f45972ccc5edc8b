"""WEMoE and Twin-Merging against oracles that materialise every example's model (methods_adaptive.md 10, 11), and laws."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

import fusionbench_lite as fbl
from fusionbench_lite.adaptation import draws
from tests.adapter_checks import check_encode, check_learned, check_losses
from tests.helpers import check_passthrough, distance, same_bits, setting, touched
from tests.oracles import routing
from tests.small_models import FlatPerceptron, NoBlocks, Transformer, small_setting

DOUBLE = torch.float64
METHODS = ["wemoe", "twin_merging"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])
each = pytest.mark.parametrize("method", METHODS)
SMALL = {"wemoe": {}, "twin_merging": {"rank_ratio": 0.5, "router": "entropy"}}


def run(method, s, steps, **options):
    return fbl.adapt(method, *s.arguments(), steps, **options)


def compare(method: str, s, steps: int, tolerance: float, **options):
    """Run both; routers, losses, routed features and base weights have to agree. Returns (adapted, outcome)."""
    want = getattr(routing, method)(s.model, s.pretrained, s.experts, s.heads, s.batches, steps, **options)
    got = run(method, s, steps, **options)
    check_learned(got.learned, want.learned, tolerance, next(iter(s.pretrained.values())).dtype)
    check_losses(got.losses, want.losses, max(10 * tolerance, 1e-9))
    check_encode(got, want.encode, s, max(10 * tolerance, 1e-9))
    check_passthrough(got.state_dict(), s.pretrained)
    assert all(distance(got.state_dict()[n], want.base[n]) <= max(tolerance, 1e-12) for n in touched(s.pretrained))
    return got, want


CASES = [
    ("wemoe", {}),
    ("wemoe", {"routing": "batch"}),
    ("wemoe", {"schedule": "constant", "lr": 0.01, "seed": 4}),
    ("wemoe", {"routing": "batch", "schedule": "constant", "scaling": 0.5}),
    ("twin_merging", {}),
    ("twin_merging", {"rank_ratio": 0.5, "lr": 0.01, "seed": 4, "dropout": 0}),
    ("twin_merging", {"router": "entropy"}),
    ("twin_merging", {"router": "entropy", "rank_ratio": 0.5, "lr": 0.01, "scaling": 0.2, "dropout": 0.3}),
    ("twin_merging", {"router": "entropy", "rank_ratio": 1.0}),
]


def identify(case):
    return case[0] + "".join(f"-{k}={v}" for k, v in case[1].items())


@pytest.mark.parametrize("case", CASES, ids=identify)
@DTYPES
def test_ten_steps(case, dtype):
    s = small_setting(Transformer(pair=dtype == DOUBLE), tasks=3, dtype=dtype)
    compare(case[0], s, 10, 1e-9 if dtype == DOUBLE else 1e-5, **case[1])


@each
@pytest.mark.parametrize("tasks", [1, 2])
def test_other_task_counts(method, tasks):
    compare(method, small_setting(tasks=tasks, seed=2), 5, 1e-9, lr=0.01, **SMALL[method])


@each
def test_other_models(method):
    """An encoder with open_clip's names and unused tensors; a model without blocks, whose feature feeds Twin's router."""
    compare(method, setting(dtype=DOUBLE, blocks=2), 4, 1e-9, **SMALL[method])
    compare(method, small_setting(NoBlocks()), 4, 1e-9, **SMALL[method])
    if method == "twin_merging":
        compare(method, small_setting(FlatPerceptron(), shape=(3,)), 4, 1e-9)


class Mixed(nn.Module):
    """A perceptron with more in it than Linear layers: transformers' Conv1D and a normalisation, which is not routed."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.mlp = nn.Module()
        self.mlp = nn.Sequential(nn.LayerNorm(3), Conv1D(4, 3), nn.Tanh(), nn.Linear(4, 3))
        self.proj = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj((x + self.mlp(x)).mean(1))


def test_what_is_routed_inside_a_perceptron():
    compare("wemoe", small_setting(Mixed()), 4, 1e-9, lr=0.05)


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


def test_router_gradient_against_finite_differences(monkeypatch):
    """The first loss as a function of b2, which `scaling` sets for the routed tensors, with the base weights held."""
    s = small_setting(NoBlocks(), tasks=1)
    for name in s.experts["task0"]:
        if not name.startswith("mlp"):
            s.experts["task0"][name] = s.pretrained[name].clone()
    h = 1e-4

    def loss(scaling):
        return float(run("wemoe", s, 1, scaling=scaling).losses[0])

    slope = (4 * (loss(0.3 + h / 2) - loss(0.3 - h / 2)) / h - (loss(0.3 + h) - loss(0.3 - h)) / (2 * h)) / 3
    after = run("wemoe", s, 1, lr=1e-3).learned["mlp/output_bias"]
    ratio = float(after - 0.3) / 1e-3  # Adam's first step is lr g / (|g| + 1e-8)
    assert math.copysign(1.0, ratio) == -math.copysign(1.0, slope)
    assert 1e-8 * abs(ratio) / (1 - abs(ratio)) == pytest.approx(abs(slope), rel=1e-3)


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


# ---------------------------------------------------------------- laws


@settings(max_examples=6, deadline=None)
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
