"""Small models: a classifier for the tests of the statistics, encoders with blocks for adapters and routers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from tests.support.helpers import Head, Setting, experts_of, rng, snapshot

CLASSES, WIDTH, HIDDEN = 4, 5, 3


def inputs(count: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perceptron(seed: int = 1) -> nn.Module:
    """tanh(x Aᵀ + a) Bᵀ + b in float64, with a buffer and a parameter that nothing reads."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        OrderedDict(first=nn.Linear(WIDTH, HIDDEN), bend=nn.Tanh(), drop=nn.Dropout(0.5), second=nn.Linear(HIDDEN, CLASSES))
    ).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    model.register_buffer("running", torch.ones(3))
    model.register_buffer("count", torch.ones(3, dtype=torch.int64))
    return model


def identity(features):
    return features


# ---------------------------------------------------------------- a transformer for adapters and routers


class TransformerBlock(nn.Module):
    """Pre-norm attention and a perceptron named `mlp`; with `pair` the output is a tuple, as transformers' are."""

    def __init__(self, width: int, hidden: int, pair: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, hidden), gelu=nn.GELU(), c_proj=nn.Linear(hidden, width))
        )
        self.pair = pair

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, None]:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.ln_2(x))
        return (x, None) if self.pair else x


class Transformer(nn.Module):
    """Tokens [B, N, 3] -> features [B, 5], read off the mean of the tokens."""

    def __init__(self, blocks: int = 2, width: int = 6, hidden: int = 8, features: int = 5, pair: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, hidden, pair) for _ in range(blocks))
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, features))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("position_ids", torch.arange(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.ln_post(x).mean(1) @ self.proj


class FlatPerceptron(nn.Module):
    """[B, 3] -> [B, 5] through layers of one class, without tokens and without a module named `mlp`."""

    def __init__(self, width: int = 6, features: int = 5) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.proj = nn.Linear(width, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.proj(x)


class NoBlocks(nn.Module):
    """[B, N, 3] -> [B, 5] with a module named `mlp` and no list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(3, 3)
        self.proj = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(torch.tanh(self.mlp(x)).mean(1))


def small_setting(
    model: nn.Module | None = None, tasks: int = 2, steps: int = 10, seed: int = 0, dtype: torch.dtype = torch.float64,
    size: float = 0.15, shape: tuple[int, ...] = (4, 3),
) -> Setting:
    """What `fbl.adapt` takes around `model` (default: Transformer()), with batches of 2 to 4 inputs of `shape`."""
    generator = rng(seed)
    model = (Transformer() if model is None else model).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 0:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4
                parameter.copy_(1 + noise if "ln_" in name and name.endswith("weight") else noise)
    pretrained = snapshot(model.state_dict())
    experts = experts_of(pretrained, tasks, 1000 * seed + 500, size)
    heads = {t: Head(5, 3 + i, 77 + 10 * seed + i, dtype) for i, t in enumerate(experts)}
    batches = {
        t: [torch.randn(2 + (i + j) % 3, *shape, generator=generator, dtype=torch.float64).to(dtype) for j in range(steps)]
        for i, t in enumerate(experts)
    }
    return Setting(model, pretrained, experts, heads, batches)
