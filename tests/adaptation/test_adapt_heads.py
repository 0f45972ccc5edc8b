"""Heads of users: classes masked with -inf, modes, outputs and gradients."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusionbench_lite as fbl
from fusionbench_lite.adaptation.engine.objectives import EntropyOfMean
from fusionbench_lite.adaptation.engine.procedure import Examples
from fusionbench_lite.models.heads import entropy
from tests.oracles.test_adapt_against_oracle import ShortOfMemory, token_setting
from tests.support.helpers import Setting, refused, rng, same_bits, setting, snapshot
from tests.support.tiny_models import BATCH, CLASSES, Fewer, Masked, tiny

DOUBLE = torch.float64


def adapted(s: Setting, method: str = "adamerging_layerwise", steps: int = 3, **given):
    return fbl.adapt(method, *s.arguments(), steps, **given)


# ---------------------------------------------------------------- p log p at p = 0


def plain_entropy(logits: Tensor) -> Tensor:
    """Σ -p log p over the classes that have a probability, row by row."""
    return torch.stack([-(q * q.log()).sum() for row in torch.softmax(logits, -1) for q in [row[row > 0]]])


def test_entropy_of_masked_classes_and_its_gradient():
    logits = torch.randn(6, 7, generator=rng(0), dtype=DOUBLE, requires_grad=True)
    mask = torch.rand(6, 7, generator=rng(1)) < 0.4
    mask[:, 0] = False
    found = entropy(logits.masked_fill(mask, -torch.inf))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    want = plain_entropy(logits.masked_fill(mask, -torch.inf))
    assert torch.allclose(found, want, atol=1e-14)
    p = torch.softmax(logits.detach().masked_fill(mask, -torch.inf), -1)
    slope = torch.where(mask, 0.0, -p * (torch.where(mask, 1.0, p).log() + found.detach()[:, None]))  # ∂H/∂z = -p (log p + H)
    assert torch.allclose(gradient, slope, atol=1e-14)
    (again,) = torch.autograd.grad(entropy(leaf := logits.detach().masked_fill(mask, -torch.inf).requires_grad_()).sum(), leaf)
    assert torch.allclose(again, slope, atol=1e-14)


def test_finite_logits_have_the_bits_that_they_had():
    for dtype in (torch.float32, torch.bfloat16, DOUBLE):
        logits = (torch.randn(64, 37, generator=rng(2), dtype=DOUBLE) * 30).to(dtype).requires_grad_()
        log_probabilities = torch.log_softmax(logits, dim=-1)
        want = -(log_probabilities.exp() * log_probabilities).sum(-1)
        (slope,) = torch.autograd.grad(want.sum(), logits)
        found = entropy(logits)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert torch.equal(found, want)
        assert torch.equal(gradient, slope)


def with_heads(s: Setting, kind, first: int = 2) -> Setting:
    s.heads = {t: kind(h, first) for t, h in s.heads.items()}
    return s


def linear(s: Setting) -> Setting:
    """Let the heads be linear layers, of which classes can be left out."""
    for number, task in enumerate(s.heads):
        s.heads[task] = layer = nn.Linear(6, 4).double()
        layer.weight.data = torch.randn(4, 6, generator=rng(number), dtype=DOUBLE)
        layer.bias.data.zero_()
    return s


METHODS = {
    "adamerging_taskwise": {}, "adamerging_layerwise": {}, "adamerging_pp_layerwise": {}, "adamerging_tsvm": {},
    "adamerging_cart": {}, "adamerging_iso_cts": {}, "adarank_ta": {}, "adarank_cart": {}, "adarank_tsvm": {},
    "adarank_iso_cts": {}, "concrete_ta": {}, "concrete_am": {}, "awd_am": {"awd_steps": 2},
    "doge_am": {"matrices": "all_2d", "delta_steps": 3},
    "pareto_merging": {}, "wemoe": {}, "twin_merging": {"router": "entropy"}, "metamerging": {}, "surgery": {}, "surgery_v2": {},
    "prob_surgery": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_masked_classes_are_no_classes(method):
    """With classes masked every method does what it does with a head that lacks them, and stays finite."""
    got, want = (
        adapted(with_heads(linear(setting(steps=9, dtype=DOUBLE)), kind), method, 2, **METHODS[method]) for kind in (Masked, Fewer)
    )
    assert torch.allclose(got.losses, want.losses, rtol=0, atol=1e-12)
    assert bool(torch.isfinite(got.losses).all())
    assert all(torch.allclose(tensor, want.learned[name].to(tensor), atol=1e-9) for name, tensor in got.learned.items())


def test_masked_classes_with_labels_of_the_others():
    def labelled(kind):
        s = with_heads(tiny(dtype=DOUBLE), kind, 3)
        s.batches = {t: [(x, torch.arange(len(x)) % 3) for x in b] for t, b in s.batches.items()}
        return adapted(s, "adarank_ta", objective="cross_entropy", matrices="all_2d")

    assert torch.allclose(labelled(Masked).losses, labelled(Fewer).losses, rtol=0, atol=1e-12)
    s = with_heads(tiny(), Masked, 3)
    s.batches = {t: [(x, torch.arange(len(x)) % 5) for x in b] for t, b in s.batches.items()}
    with refused("task 'task0'", "label 3", "-inf"):
        adapted(s, "adarank_ta", objective="cross_entropy", matrices="all_2d")


def test_mean_logits_of_masked_classes_in_parts():
    """The linear form that parts of a batch are given has the gradient of H(z̄), masked classes included."""
    head = Masked(nn.Linear(4, CLASSES).double())
    whole = EntropyOfMean({"a": head})
    features = torch.randn(BATCH, 4, generator=rng(4), dtype=DOUBLE, requires_grad=True)
    loss = whole("a", features, Examples()).mean()
    (want,) = torch.autograd.grad(loss, features)
    means = {"a": head(features.detach()).mean(0)}
    parts = whole.around(means)("a", features, Examples())
    (got,) = torch.autograd.grad(parts.mean(), features)
    assert torch.allclose(parts.mean(), loss, atol=1e-12)
    assert torch.allclose(parts.mean(), plain_entropy(means["a"][None])[0], atol=1e-12)
    assert torch.allclose(got, want, atol=1e-12)


def test_memory_runs_out_with_masked_classes():
    s = token_setting(rng(23))
    s.heads = {t: (lambda f, h=h: h(f).index_fill(1, torch.tensor([1]), -torch.inf)) for t, h in s.heads.items()}
    short = ShortOfMemory().double()
    short.load_state_dict(s.model.state_dict())
    want = adapted(s)
    s.model = short
    assert torch.allclose(adapted(s).losses, want.losses, atol=1e-12)


@pytest.mark.parametrize(("value", "where", "said"), [
    (-torch.inf, (1, slice(None)), "example 1 the logit -inf"),
    (torch.nan, (2, 3), "example 2 the logit nan for class 3"),
    (torch.inf, (0, 1), "example 0 the logit inf for class 1"),
])
def test_logits_that_have_no_entropy(value, where, said):
    s = tiny()
    head = s.heads["task1"]

    def odd(features: Tensor) -> Tensor:
        logits = head(features).clone()
        if len(logits) > 2:
            logits[where] = value
        return logits

    s.heads["task1"] = odd
    with refused("task 'task1'", said, "mask"):
        adapted(s)


# ---------------------------------------------------------------- modes


class Noisy(nn.Module):
    """A head that differs in training mode, and counts there."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(4), nn.Dropout(0.5), head

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(features)))


class Callable:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, features: Tensor) -> Tensor:
        return self.module(features)


def apply(module: nn.Module, features: Tensor) -> Tensor:
    return module(features)


GLOBAL: nn.Module = nn.Identity()
HELD = {
    "module": lambda m: m, "method": lambda m: m.forward, "default": lambda m: lambda f, m=m: m(f),
    "closure": lambda m: lambda f: m(f), "partial": lambda m: functools.partial(apply, m), "object": Callable,
    "compiled": lambda m: torch.compile(m, backend="eager"),
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("method", ["adamerging_layerwise", "pareto_merging"])
def test_heads_run_as_at_evaluation(held, method):
    """Wherever the module is: dropout off, running statistics read and left alone, its own mode afterwards."""
    results = []
    for training in (True, False):
        s = tiny()
        noisy = {t: Noisy(h).train(training) for t, h in s.heads.items()}
        before = {t: snapshot(m.state_dict()) for t, m in noisy.items()}
        s.heads = {t: HELD[held](m) for t, m in noisy.items()}
        results.append(adapted(s, method))
        assert all(m.training is training and m.drop.training is training for m in noisy.values())
        assert all(same_bits(m.state_dict(), before[t]) for t, m in noisy.items())
    assert torch.equal(results[0].losses, results[1].losses)


def test_a_module_that_a_function_finds_by_name():
    global GLOBAL
    s = tiny()
    GLOBAL = Noisy(s.heads["task0"]).train()
    before = snapshot(GLOBAL.state_dict())
    s.heads["task0"] = lambda features: GLOBAL(features)
    adapted(s)
    assert GLOBAL.training
    assert same_bits(GLOBAL.state_dict(), before)


@pytest.mark.parametrize("method", ["adamerging_layerwise", "traditional_mtl"])
def test_heads_take_no_gradient(method):
    s = tiny()
    if method == "traditional_mtl":
        s.batches = {t: [(x, torch.arange(len(x)) % 5) for x in b] for t, b in s.batches.items()}
    before = {t: snapshot(h.state_dict()) for t, h in s.heads.items()}
    adapted(s, method, 2)
    assert all(p.grad is None for h in s.heads.values() for p in h.parameters())
    assert all(same_bits(h.state_dict(), before[t]) for t, h in s.heads.items())


# ---------------------------------------------------------------- heads that give no logits, and their mends


def no_gradient(head):
    with torch.no_grad():
        return nn.Sequential(nn.Linear(4, 5)).requires_grad_(False), lambda f: head(f.detach())


BROKEN = {
    "tuple": (lambda h: lambda f: (h(f),), lambda b: lambda f: b(f)[0], ["tuple of 1", r"head\(features\)\[0\]"]),
    "output": (lambda h: lambda f: {"loss": None, "logits": h(f)}, lambda b: lambda f: b(f)["logits"], [r"\['logits'\]"]),
    "double": (lambda h: copy.deepcopy(h).double(), lambda b: b.to(torch.float32), ["torch.float64", r"head.to\(torch.float32\)"]),
    "softmax": (lambda h: nn.Sequential(h, nn.Softmax(-1)), lambda b: lambda f: b(f).log(), ["probabilities", "logarithm"]),
    "detach": (lambda h: lambda f: h(f.detach()), None, ["no gradient", "detach"]),
    "no_grad": (lambda h: torch.no_grad()(h.forward), None, ["no gradient", "no_grad"]),
    "inference": (lambda h: torch.inference_mode()(h.forward), None, ["no gradient", "inference_mode"]),
    "argmax": (lambda h: lambda f: F.one_hot(h(f).argmax(1), 5).float() * 3, None, ["no gradient"]),
    "classes": (lambda h: lambda f: h(f).argmax(1), None, ["int64", r"logits \[8, C\]"]),
    "tokens": (lambda h: lambda f: h(f)[:, None], None, [r"\(8, 1, 5\)", r"logits \[8, C\]"]),
    "wide": (lambda h: nn.Linear(7, 5), None, [r"\(8, 4\)", "7x5"]),
    "one class": (lambda h: nn.Linear(4, 1), None, ["one class", "2 classes"]),
    "tensor": (lambda h: h.weight, None, ["module or function", "Parameter"]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_heads_that_give_no_logits(kind):
    breaks, mends, parts = BROKEN[kind]
    s = tiny()
    s.heads["task1"] = breaks(s.heads["task1"])
    with refused("task 'task1'", *parts):
        adapted(s)
    if mends is not None:
        s.heads["task1"] = mends(s.heads["task1"])
        assert torch.allclose(adapted(s).losses, adapted(tiny()).losses, atol=1e-6)


def test_quantised_heads_pass_no_gradient():
    s = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        s.heads["task0"] = torch.ao.quantization.quantize_dynamic(nn.Sequential(s.heads["task0"]), {nn.Linear})
        with refused("task 'task0'", "no gradient", "quantised"):
            adapted(s)


def test_heads_made_in_inference_mode():
    s = tiny()
    with torch.inference_mode():
        s.heads = {t: copy.deepcopy(h) for t, h in s.heads.items()}
    with refused("task 'task0'", r"copy.deepcopy\(head\)"):
        adapted(s)
    s.heads = {t: copy.deepcopy(h) for t, h in s.heads.items()}
    assert torch.equal(adapted(s).losses, adapted(tiny()).losses)


def test_a_method_without_heads_asks_nothing_of_them():
    s = tiny()
    s.heads["task0"] = nn.Linear(4, 1)
    assert torch.equal(adapted(s, "surgery").losses, adapted(tiny(), "surgery").losses)
