"""Representation surgery against float64 oracles, and its laws."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch.func import functional_call

import fusionbench_lite as fbl
from tests.oracles import surgery
from tests.support.adapter_checks import (
    check_encode,
    check_learned,
    check_losses,
    gradient_of,
    identify,
)
from tests.support.helpers import distance, same_bits, setting, snapshot
from tests.support.small_models import FlatPerceptron, NoBlocks, Transformer, small_setting

DOUBLE = torch.float64
METHODS = ["surgery", "surgery_v2", "prob_surgery"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])
each = pytest.mark.parametrize("method", METHODS)


def base_of(s, **options):
    return fbl.merge(options.get("base", "task_arithmetic"), s.pretrained, s.experts).state_dict()


def compare(method: str, s, steps: int, tolerance: float, **options):
    """Run both; learned tensors, losses, features and base weights have to agree. Returns (adapted, outcome)."""
    merged = options.get("merged") or base_of(s, **options)
    own = {k: v for k, v in options.items() if k not in ("base", "merged")}
    want = getattr(surgery, method)(s.model, merged, s.experts, s.batches, steps, **own)
    got = fbl.adapt(method, *s.arguments(), steps, **options)
    dtype = next(iter(s.pretrained.values())).dtype
    check_learned(got.learned, want.learned, tolerance, dtype)
    check_losses(got.losses, want.losses, max(10 * tolerance, 1e-9))
    check_encode(got, want.encode, s, max(10 * tolerance, 1e-9))
    assert same_bits(got.state_dict(), merged)
    assert same_bits(got.state_dict(task="task0"), merged)
    assert got.masks == {}
    return got, want


CASES = [
    ("surgery", {}),
    ("surgery", {"rank": 3, "lr": 0.01, "seed": 4, "base": "weight_averaging"}),
    ("surgery", {"moments": "all", "lr": 0.01}),
    ("surgery", {"normalise": True}),
    ("surgery", {"normalise": True, "moments": "all", "rank": 1}),
    ("surgery_v2", {}),
    ("surgery_v2", {"rank": 4, "lr": 0.01, "seed": 4, "base": "ties_merging"}),
    ("prob_surgery", {}),
    ("prob_surgery", {"hidden": 7, "kl": 0.1, "lr": 0.01, "seed": 4}),
    ("prob_surgery", {"shared": True, "lr": 0.01}),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
@DTYPES
def test_ten_steps(case, dtype):
    s = small_setting(Transformer(pair=dtype == DOUBLE), tasks=3, dtype=dtype)
    compare(case[0], s, 10, 1e-9 if dtype == DOUBLE else 1e-5, **case[1])


@each
@pytest.mark.parametrize("tasks", [1, 2])
def test_other_task_counts(method, tasks):
    compare(method, small_setting(tasks=tasks, seed=2), 5, 1e-9, lr=0.01)


@each
@pytest.mark.parametrize("make", [FlatPerceptron, functools.partial(Transformer, blocks=1), None], ids=["flat", "one", "clip"])
def test_other_models(method, make):
    """Layers without tokens, a single block, an encoder with open_clip's names and unused tensors."""
    s = setting(dtype=DOUBLE, blocks=2) if make is None else small_setting(make(), shape=(3,) if make is FlatPerceptron else (4, 3))
    compare(method, s, 5, 1e-9, lr=0.01)


@pytest.mark.parametrize("method", ["surgery", "prob_surgery"])
def test_a_model_without_blocks_has_features(method):
    compare(method, small_setting(NoBlocks()), 5, 1e-9)


@each
def test_given_merged_weights(method):
    """`merged` replaces the base; it is read, not kept or changed."""
    s = small_setting(tasks=2)
    merged = snapshot(fbl.merge("task_arithmetic", s.pretrained, s.experts, scaling=0.71).state_dict())
    before = snapshot(merged)
    got, _ = compare(method, s, 5, 1e-9, merged=merged)
    assert same_bits(merged, before)
    for value in merged.values():
        value.zero_()
    assert same_bits(got.state_dict(), before)


# ---------------------------------------------------------------- the start


@each
@DTYPES
def test_zero_steps_is_the_merged_model_bit_for_bit(method, dtype):
    s = small_setting(tasks=2, dtype=dtype)
    heads, x = s.heads, s.batches["task0"][0]
    s.batches = {t: [] for t in s.experts}
    got = fbl.adapt(method, *s.arguments(), 0)
    base = base_of(s)
    with torch.no_grad():
        want = functional_call(s.model.eval(), base, (x,))
    for task in s.experts:
        assert torch.equal(got.encode(x, task), want)
        assert torch.equal(heads[task](got.encode(x, task)), heads[task](want))
    assert same_bits(got.state_dict(), base)
    assert got.losses.shape == (0,)


@each
def test_first_update_changes_only_what_starts_at_zero(method):
    s = small_setting(tasks=2)
    got, width = fbl.adapt(method, *s.arguments(), 1).learned, {0: 6, 1: 6, 2: 5}
    for name, value in got.items():
        task, *number, part = name.split("/")
        if part == "down":
            key = [0, method, task, *map(int, number), "down"]
            start = surgery.down_weights(len(value), width[int(number[0])] if number else 5, *key)
            assert torch.equal(value.double(), start.detach()), name
            assert float(value.abs().max()) <= 1 / math.sqrt(value.shape[1])
        else:
            moved = value != 0
            assert moved.any()
            assert bool((value[moved].abs() <= 1e-3).all())
    assert len(got) == {"surgery": 4, "surgery_v2": 12, "prob_surgery": 6}[method]


def test_gradient_against_finite_differences_and_the_formula():
    """L1 is piecewise linear in U: central differences of a plain loss are exact but for rounding."""
    s = small_setting(tasks=1)
    x, base = s.batches["task0"][0], base_of(s)
    z = functional_call(s.model, base, (x,)).detach()
    y = functional_call(s.model, s.experts["task0"], (x,)).detach()
    got = fbl.adapt("surgery", *s.arguments(), 1, rank=4).learned
    r = torch.relu(z @ got["task0/down"].T)

    def loss(up):
        return (z - r @ up.T - y).abs().mean()

    gradient = gradient_of(got["task0/up"], 1e-3)
    formula = -((z - y).sign()[:, :, None] * r[:, None, :]).sum(0) / z.numel()
    differences = torch.zeros(5, 4, dtype=DOUBLE)
    for i in range(5):
        for k in range(4):
            up = torch.zeros(5, 4, dtype=DOUBLE)
            up[i, k] = 1e-4
            differences[i, k] = (loss(up) - loss(-up)) / 2e-4
    assert distance(differences, formula) <= 1e-9
    assert distance(gradient, differences) <= 1e-6
    second = fbl.adapt("surgery", *s.arguments(), 2, rank=4).learned["task0/down"] - got["task0/down"]
    x = s.batches["task0"][1]
    z = functional_call(s.model, base, (x,)).detach()
    y = functional_call(s.model, s.experts["task0"], (x,)).detach()
    up, active = got["task0/up"], z @ got["task0/down"].T > 0
    signs = (z - torch.relu(z @ got["task0/down"].T) @ up.T - y).sign()
    formula = -(((signs @ up) * active)[:, :, None] * z[:, None, :]).sum(0) / z.numel()
    large = formula.abs() > 1e-5  # a second step after a zero gradient: its length is known, its sign is the gradient's
    assert large.any()
    factor = (0.1 / (1 - 0.9**2)) / math.sqrt(0.001 / (1 - 0.999**2))
    assert torch.allclose(second[large], -1e-3 * factor * formula[large].sign(), rtol=2e-3)


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_tasks_do_not_disturb_each_other(case):
    """Every task alone, on the same merged weights, learns what it learns among the others; except where state is shared."""
    method, options = case[0], {k: v for k, v in case[1].items() if k != "base"}
    s = small_setting(tasks=2, steps=5)
    base = base_of(s)
    together = fbl.adapt(method, *s.arguments(), 5, merged=base, **options).learned
    alone = {}
    for task in s.experts:
        one = s.permuted([task])
        alone.update(fbl.adapt(method, *one.arguments(), 5, merged=base, **options).learned)
    same = all(torch.allclose(together[n], alone[n], rtol=0, atol=1e-12) for n in together)
    assert same != (options.get("moments") == "all" or options.get("shared", False))


def test_moments_are_the_same_for_a_single_task():
    s = small_setting(tasks=1)
    own, everything = (fbl.adapt("surgery", *s.arguments(), 8, moments=m).learned for m in ("own", "all"))
    assert same_bits(own, everything)


@each
@DTYPES
def test_features_may_be_cached_the_caller_cannot_tell(method, dtype):
    """The same tensor again and again or clones of it; tensors that live for one step, whose memory is then reused."""
    s = small_setting(tasks=2, steps=8, dtype=dtype)
    apart, full = fbl.adapt(method, *s.arguments(), 8), s.batches
    s.batches = {t: [b[0].clone() for _ in b] for t, b in full.items()}
    clones = fbl.adapt(method, *s.arguments(), 8)
    s.batches = {t: [b[0] for _ in b] for t, b in full.items()}
    assert same_bits(fbl.adapt(method, *s.arguments(), 8).learned, clones.learned)
    s.batches = {t: (x.clone() for x in b) for t, b in full.items()}
    assert same_bits(fbl.adapt(method, *s.arguments(), 8).learned, apart.learned)
