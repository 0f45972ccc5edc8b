"""Per-example mixtures of weights: the forms of a mixed linear layer agree, and lazy models equal materialised ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fusionbench_lite.adaptation.learners import mixture
from fusionbench_lite.adaptation.learners.lazy_weights import LazyModel, LowRank, Whole
from fusionbench_lite.adaptation.learners.mixture import Gates, MixedLinear, Mixture, cheaper_factored, factored
from tests.support.helpers import same_bits, snapshot

TASKS, RANK = 3, 2


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("budget", [1 << 20, 400], ids=["together", "in groups"])
@pytest.mark.parametrize("transposed", [False, True])
def test_mixed_and_factored_forms_agree(monkeypatch, transposed, budget):
    monkeypatch.setitem(mixture.BUDGET, "cpu", budget)
    x, g = draw(5, 3, 4).requires_grad_(), draw(5, 2).requires_grad_()
    weight, vectors = draw(6, 4), draw(2, 6, 4)
    if transposed:
        weight, vectors = weight.T.contiguous(), vectors.mT.contiguous()

    def mixed(x: Tensor, g: Tensor) -> Tensor:
        return Mixture.apply(x, g, weight, vectors, transposed)

    assert torch.autograd.gradcheck(mixed, (x, g))
    assert torch.autograd.gradcheck(lambda x, g: factored(x, g, weight, vectors, transposed), (x, g))
    assert torch.allclose(mixed(x, g), factored(x, g, weight, vectors, transposed), rtol=0, atol=1e-12)


def test_the_form_with_fewer_operations_is_taken(monkeypatch):
    assert cheaper_factored(tokens=1, tasks=8)
    assert not cheaper_factored(tokens=2, tasks=8)
    gates = Gates()
    layer = MixedLinear(gates, draw(6, 4), draw(2, 6, 4), draw(6), draw(2, 6))
    gates.values, x = draw(5, 2), draw(5, 4)
    wanted = [layer(x), layer(x[:, None])[:, 0]]
    monkeypatch.setattr(mixture, "cheaper_factored", lambda tokens, tasks: False)
    assert torch.allclose(wanted[0], layer(x), rtol=0, atol=1e-12)
    assert torch.allclose(wanted[0], wanted[1], rtol=0, atol=1e-12)


class Everything(nn.Module):
    """Layers of every kind that a lazy model treats on its own, and bare parameters; attention with masks and weights."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.attention = nn.MultiheadAttention(12, 2)
        self.convolution = nn.Conv2d(3, 12, 2, 2)
        self.position = nn.Parameter(draw(4, 12))
        self.tokens = nn.Embedding(9, 12)
        self.tied = nn.Linear(12, 9, bias=False)
        self.tied.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.convolution(x).flatten(2).mT + self.position
        h = self.encoder(h, mask=torch.triu(torch.full((4, 4), -torch.inf, dtype=h.dtype), 1))
        first = self.attention.batch_first
        query, key, value = (state if first else state.transpose(0, 1) for state in (h, h.flip(1), h + 1))
        y, weights = self.attention(query, key, value, attn_mask=torch.eye(4, dtype=torch.bool))
        y = (y if first else y.transpose(0, 1)) + weights.sum(-1, keepdim=True)
        y = y + self.tokens.weight[3] + self.tokens(torch.arange(4))
        return self.tied(y)[:, 1]


class OneByOne(Everything):
    """Its control flow depends on values, which vmap refuses."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if bool(x.sum() > -1e9) else x


def mixtures(base: dict[str, Tensor]) -> tuple[dict[str, LowRank | Whole], dict[str, Tensor]]:
    """Vectors as a lazy model takes them, and dense."""
    vectors: dict[str, LowRank | Whole] = {}
    dense = {}
    for number, (name, p) in enumerate(base.items()):
        if name.endswith("bias"):
            continue
        if p.dim() == 2:
            left = draw(TASKS, p.shape[0], RANK, scale=0.3, seed=number)
            right = draw(TASKS, RANK, p.shape[1], scale=0.3, seed=number)
            vectors[name] = LowRank(torch.cat(list(left), 1), torch.cat(list(right)), TASKS)
            dense[name] = left @ right
        else:
            dense[name] = draw(TASKS, *p.shape, scale=0.3, seed=number)
            vectors[name] = Whole(dense[name])
    return vectors, dense


@pytest.mark.parametrize("kind", [Everything, OneByOne])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_lazy_model_equals_one_model_per_example(kind, batch_first, caplog):
    torch.manual_seed(0)
    model = kind().double().eval()
    model.attention.batch_first = batch_first
    before = snapshot(model.state_dict())
    base = {n: p.detach() + draw(*p.shape, scale=0.1) for n, p in model.state_dict().items() if n != "tied.weight"}
    vectors, dense = mixtures(base)
    x, gates = draw(3, 3, 4, 4), torch.rand(3, TASKS, dtype=torch.float64).requires_grad_()

    def materialised(gates: Tensor) -> Tensor:
        rows = []
        for one, gate in zip(x, gates, strict=True):
            own = {n: p + torch.einsum("t,t...->...", gate, dense[n]) if n in dense else p for n, p in base.items()}
            rows.append(functional_call(model, own, (one[None],)))
        return torch.cat(rows)

    lazy = LazyModel(model, base, vectors)
    with torch.no_grad():
        assert torch.allclose(lazy.encode(x, gates), materialised(gates), rtol=0, atol=1e-12)
        assert torch.allclose(lazy.encode(x, gates, chunk=2), materialised(gates), rtol=0, atol=1e-12)
    got, want = (torch.autograd.grad(f(gates).square().sum(), gates)[0] for f in (lambda g: lazy.encode(x, g), materialised))
    assert torch.allclose(got, want, rtol=1e-9)
    assert ("one by one" in caplog.text) == (kind is OneByOne)
    assert same_bits(model.state_dict(), before)
