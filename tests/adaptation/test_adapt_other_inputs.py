"""Token ids, batches of different shapes, too little memory, half precision and tied tensors: methods that learn coefficients."""

from __future__ import annotations

import pytest
import torch

import fusionbench_lite as fbl
from tests.oracles import concrete, pareto
from tests.oracles.test_adapt_against_oracle import ShortOfMemory, TokenEncoder, token_setting
from tests.support.adapt_comparison import DOUBLE, check_losses, check_merged, close_states, run
from tests.support.helpers import Head, Setting, check_passthrough, distance, experts_of, rng, setting, touched

CASES = {
    "adamerging_pp_layerwise": {},
    "adamerging_iso_cts": {},
    "adarank_iso_cts": {},
    "concrete_ta": {},
    "concrete_am": {"order": "released"},
    "pareto_merging": {},
    "doge_am": {"delta_steps": 3, "matrices": "all_2d"},
    "awd_am": {"awd_steps": 3},
}
ALL = pytest.mark.parametrize("method", CASES)


def lengths(s: Setting) -> Setting:
    """Every task has inputs of its own length."""
    s.batches["task1"] = [x[:, :4] for x in s.batches["task1"]]
    return s


def oracle(method, s, steps):
    if method == "pareto_merging":
        found = pareto.pareto_merging(s, steps)
        return found.losses, found.state(found.equal())
    found = getattr(concrete, method)(s, steps, **CASES[method])
    return found.losses, found.state


@pytest.mark.parametrize("method", ["concrete_ta", "concrete_am", "pareto_merging"])
@pytest.mark.parametrize("shape", [token_setting, lambda g: lengths(token_setting(g))], ids=["equal", "different"])
def test_integer_inputs(method, shape):
    s = shape(rng(21))
    losses, state = oracle(method, s, 3)
    got = run(method, s, 3, **CASES[method])
    check_losses(got.losses, losses, 1e-9)
    check_merged(got, state, s, 1e-8)


@ALL
@pytest.mark.parametrize("shape", [lambda s: s, lengths], ids=["equal", "different"])
def test_memory_runs_out(method, shape):
    """Halving the chunk repeats nothing and loses nothing, also when part of a step has been accumulated."""
    s = shape(token_setting(rng(23)))
    want = run(method, s, 3, lr=0.01, **CASES[method])
    short = ShortOfMemory().double()
    short.load_state_dict(s.model.state_dict())
    got = fbl.adapt(method, short, *s.arguments()[1:], 3, lr=0.01, **CASES[method])
    assert short.calls > 6
    assert torch.allclose(want.losses, got.losses, atol=1e-12)
    assert all(torch.allclose(v, got.coefficients[n], atol=1e-10) for n, v in want.coefficients.items())
    close_states(got.state_dict(), want.state_dict(), s.pretrained, 1e-9)


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_half_precision_model(method, dtype):
    """Against the same run in float64: the loss and the weights agree to the precision of the forward pass."""
    s = setting(steps=8, dtype=dtype)
    exact = setting(steps=8, dtype=DOUBLE)
    exact.pretrained, *experts = (
        {n: v.double() if v.is_floating_point() else v for n, v in x.items()} for x in (s.pretrained, *s.experts.values())
    )
    exact.experts = dict(zip(s.experts, experts, strict=True))
    exact.batches = {t: [x.double() for x in b] for t, b in s.batches.items()}
    got, want = (run(method, x, 4, **CASES[method]) for x in (s, exact))
    check_passthrough(got.state_dict(), s.pretrained)
    assert distance(got.losses, want.losses) < 4 * torch.finfo(dtype).eps
    weights, exact_weights = got.state_dict(), want.state_dict()
    assert all(distance(weights[n], exact_weights[n]) < 2 * torch.finfo(dtype).eps for n in touched(s.pretrained))
    assert got.encode(s.batches["task0"][0], "task0").dtype == dtype


class Tied(TokenEncoder):
    """The embedding has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.embedding


@ALL
def test_tied_tensors_are_one(method):
    g = rng(3)
    model = Tied().double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=DOUBLE) * 0.5)
    base = {n: v.detach() for n, v in model.state_dict().items()}
    experts = experts_of(base, 2)
    for expert in experts.values():
        expert["again.weight"] = expert["embedding.weight"]
    heads = {t: Head(6, 3 + i, i, DOUBLE) for i, t in enumerate(experts)}
    batches = {t: [torch.randint(0, 11, (4, 7), generator=g) for _ in range(6)] for t in experts}
    got = run(method, Setting(model, base, experts, heads, batches), 3, lr=0.01, **CASES[method])
    state = got.state_dict()
    assert torch.equal(state["again.weight"], state["embedding.weight"])
    assert not torch.equal(state["again.weight"], base["again.weight"])
    assert torch.equal(got.coefficients["again.weight"], got.coefficients["embedding.weight"])


@pytest.mark.parametrize("method", ["adarank_ta", "adarank_cart", "adarank_tsvm", "adarank_iso_cts"])
def test_little_memory_gives_the_same_weights(method, monkeypatch):
    """Without dense sums every merge multiplies the active components; weights, losses and masks agree."""
    s = setting(dtype=torch.float64, steps=40, seed=3)
    rich = fbl.adapt(method, *s.arguments(), 40, lr=0.02)
    monkeypatch.setattr("fusionbench_lite.adaptation.engine.memory.SHARE", 0.0)
    poor = fbl.adapt(method, *s.arguments(), 40, lr=0.02)
    assert any(bool((mask != mask[:, :1]).any()) for mask in rich.masks.values())  # some components are off
    assert all(torch.equal(mask, poor.masks[name]) for name, mask in rich.masks.items())
    assert torch.allclose(rich.losses, poor.losses, rtol=0, atol=1e-9)
    for name, tensor in rich.state_dict().items():
        assert torch.allclose(tensor, poor.state_dict()[name], rtol=0, atol=1e-5 if tensor.is_floating_point() else 0), name
