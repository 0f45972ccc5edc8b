"""Laws of the adaptive methods (docs/decisions.md, D20) that need no oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fusionbench_lite as fbl
from tests.support.helpers import (
    check_passthrough,
    same_bits,
    setting,
    snapshot,
    touched,
)

DOUBLE = torch.float64
ADAMERGING = ["adamerging_taskwise", "adamerging_layerwise"]
ADARANK = ["adarank_ta", "adarank_cart", "adarank_tsvm"]
ALL = ADAMERGING + ADARANK
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])


def run(method, s, steps=5, **given):
    return fbl.adapt(method, *s.arguments(), steps, **given)


# ---------------------------------------------------------------- shapes of the result


@DTYPES
@pytest.mark.parametrize("method", ALL)
def test_what_comes_back(method, dtype):
    s = setting(dtype=dtype)
    got = run(method, s, 4)
    state = got.state_dict()
    check_passthrough(state, s.pretrained)
    assert all(not v.requires_grad and bool(torch.isfinite(v).all()) for v in state.values())
    assert got.losses.shape == (4,)
    assert got.losses.is_floating_point()
    assert not got.losses.requires_grad
    assert bool((got.losses > 0).all())
    assert float(got.losses.max()) <= sum(float(np.log(3 + i)) for i in range(3))
    assert all(v.shape == (3,) and v.is_floating_point() and not v.requires_grad for v in got.coefficients.values())
    if method == "adamerging_taskwise":
        assert len({tuple(v.tolist()) for v in got.coefficients.values()}) == 1
    else:
        assert set(got.coefficients) >= set(touched(s.pretrained))
    assert bool(got.masks) == method.startswith("adarank")
    assert all(m.dtype == torch.bool and len(m) == 3 for m in got.masks.values())


@pytest.mark.parametrize("method", ALL)
def test_state_dict_is_not_shared(method):
    s = setting()
    got = run(method, s, 2)
    first = snapshot(got.state_dict())
    for value in got.state_dict().values():
        value.zero_()
    assert same_bits(got.state_dict(), first)


@pytest.mark.parametrize("method", ALL)
def test_same_call_same_bits(method):
    s = setting()
    a, b = run(method, s, 5, lr=0.02), run(method, s, 5, lr=0.02)
    assert same_bits(a.state_dict(), b.state_dict())
    assert same_bits(a.coefficients, b.coefficients)
    assert torch.equal(a.losses, b.losses)


@pytest.mark.parametrize("method", ALL)
def test_fewer_steps_are_a_prefix(method):
    s = setting()
    assert torch.equal(run(method, s, 8, lr=0.02).losses[:5], run(method, s, 5, lr=0.02).losses)


# ---------------------------------------------------------------- inputs untouched


@DTYPES
@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("training", [True, False])
def test_model_heads_and_inputs_are_left_as_they_were(method, dtype, training):
    s = setting(dtype=dtype, dropout=0.5, blocks=2)
    s.model.train(training)
    s.model.resblocks[1].train(not training)
    for i, parameter in enumerate(s.model.parameters()):
        parameter.requires_grad_(i % 3 != 0)
    s.heads["task1"].requires_grad_(False)
    s.heads["task2"].train(not training)

    def picture(s):
        modules = [s.model, *s.heads.values()]
        flags = [[p.requires_grad for p in m.parameters()] + [c.training for c in m.modules()] for m in modules]
        grads = [[p.grad is None for p in m.parameters()] for m in modules]
        hooks = [[len(c._forward_hooks) + len(c._forward_pre_hooks) for c in m.modules()] for m in modules]
        states = [snapshot(x) for x in (*(m.state_dict() for m in modules), s.pretrained, *s.experts.values())]
        return flags, grads, hooks, states, [[b.clone() for b in x] for x in s.batches.values()]

    before, parameters = picture(s), [id(p) for p in s.model.parameters()]
    run(method, s, 3, lr=0.05)
    after = picture(s)
    assert before[:3] == after[:3]
    assert all(same_bits(a, b) for a, b in zip(before[3], after[3], strict=True))
    assert all(torch.equal(a, b) for x, y in zip(before[4], after[4], strict=True) for a, b in zip(x, y, strict=True))
    assert parameters == [id(p) for p in s.model.parameters()]
    assert not any(v.requires_grad for v in s.pretrained.values())


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_cart"])
def test_weights_inside_the_model_do_not_matter(method):
    s = setting()
    other = s.copy()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(1.0)
    assert same_bits(run(method, s).coefficients, run(method, other).coefficients)


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_ta"])
def test_dropout_is_off_during_adaptation(method):
    noisy, plain = setting(dropout=0.5), setting()
    noisy.model.train()
    assert same_bits(run(method, noisy).coefficients, run(method, plain).coefficients)


@pytest.mark.parametrize("method", ALL)
def test_plain_functions_serve_as_heads_and_iterators_as_batches(method):
    s = setting()
    want = run(method, s)
    heads = {t: (lambda f, h=h: h(f)) for t, h in s.heads.items()}
    streams = {t: iter(b) for t, b in s.batches.items()}
    got = fbl.adapt(method, s.model, s.pretrained, s.experts, heads, streams, 5)
    assert same_bits(got.coefficients, want.coefficients)


@pytest.mark.parametrize("method", ALL)
def test_views_and_parameters_are_accepted(method):
    s = setting()
    want = run(method, s)
    for state in (s.pretrained, *s.experts.values()):
        for name in ("proj", "resblocks.0.mlp.c_fc.weight"):
            state[name] = torch.nn.Parameter(state[name].T.contiguous().T)
    got = run(method, s)
    assert all(torch.allclose(got.coefficients[n], v, atol=1e-5) for n, v in want.coefficients.items())
    assert not any(v.requires_grad for v in got.state_dict().values())


def test_more_batches_than_steps_are_left_alone():
    s = setting(steps=10)
    streams = {t: iter(b) for t, b in s.batches.items()}
    fbl.adapt("adamerging_layerwise", s.model, s.pretrained, s.experts, s.heads, streams, 4)
    assert all(len(list(stream)) >= 5 for stream in streams.values())  # reading one ahead is fine
