"""State dicts, a tiny encoder and comparisons shared by the method and adaptation tests."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusionbench_lite as fbl

State = dict[str, Tensor]
PRECISION = {torch.float64: 1e-10, torch.float32: 1e-6}
SVD_PRECISION = {torch.float64: 1e-8, torch.float32: 1e-5}


# ---------------------------------------------------------------- state dicts


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip_state(seed: int = 0, dtype: torch.dtype = torch.float32, width: int = 8) -> State:
    """A state dict with every kind of tensor an open_clip image encoder has, and an empty one."""
    g = rng(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    block = "visual.transformer.resblocks.0."
    return {
        "positional_embedding": draw(7, width),
        "text_projection": draw(width, 6),
        "logit_scale": torch.tensor(4.6052, dtype=dtype),
        "visual.class_embedding": draw(width),
        "visual.positional_embedding": draw(5, width),
        "visual.proj": draw(width, 6),
        "visual.conv1.weight": draw(width, 3, 2, 2),
        "visual.ln_pre.weight": draw(width),
        block + "ln_1.weight": draw(width),
        block + "attn.in_proj_weight": draw(3 * width, width),
        block + "attn.in_proj_bias": draw(3 * width),
        block + "attn.out_proj.weight": draw(width, width),
        block + "mlp.c_fc.weight": draw(2 * width, width),
        block + "mlp.c_fc.bias": draw(2 * width),
        block + "mlp.c_proj.weight": draw(width, 2 * width),
        "visual.position_ids": torch.arange(5),
        "visual.empty": torch.zeros(0, width, dtype=dtype),
    }


def expert_of(base: Mapping[str, Tensor], seed: int, size: float = 0.3) -> State:
    """`base` plus a random task vector; integer and empty tensors stay as they are."""
    g, of_scalars = rng(seed), rng(seed + (1 << 20))
    out = {}
    for name, value in base.items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=g if value.ndim else of_scalars, dtype=torch.float64)
            out[name] = (value.double() + size * noise).to(value.dtype)
        else:
            out[name] = value.clone()
    return out


def experts_of(base: Mapping[str, Tensor], count: int = 3, seed: int = 100, size: float = 0.3) -> dict[str, State]:
    return {f"task{t}": expert_of(base, seed + t, size) for t in range(count)}


def grid_state(seed: int, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> State:
    """Small multiples of 1/8: sums and differences are exact, ties, zeros and cancellations are frequent."""
    g = rng(seed)
    return {n: (torch.randint(-4, 5, s, generator=g).double() / 8).to(dtype) for n, s in shapes.items()}


def snapshot(state: Mapping[str, Tensor]) -> State:
    return {n: v.detach().clone() for n, v in state.items()}


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


# ---------------------------------------------------------------- comparisons


def touched(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors a merge may change."""
    return [n for n, v in state.items() if v.is_floating_point() and v.numel() > 0]


def distance(actual: Tensor, expected: np.ndarray | Tensor) -> float:
    """Largest deviation divided by the largest expected magnitude."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert tuple(actual.shape) == tuple(expected.shape)
    scale = max(float(expected.abs().max()), 1e-3)
    return float((actual.double() - expected).abs().max()) / scale


def check_passthrough(state: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    """Keys, shapes and dtypes of `base`; tensors that merging does not touch keep their bits."""
    assert set(state) == set(base)
    assert all(state[n].dtype == base[n].dtype and state[n].shape == base[n].shape for n in base)
    for name in set(base) - set(touched(base)):
        assert torch.equal(state[name], base[name]), name


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, np.ndarray], base: State, tolerance: float) -> None:
    """Compare a merged state dict with an oracle, tensor by tensor."""
    check_passthrough(state, base)
    for name in touched(base):
        error = distance(state[name], expected[name])
        assert error <= tolerance, f"{name}: relative error {error:.2e} above {tolerance:.0e}"


def check_rounded(
    state: Mapping[str, Tensor], expected: Mapping[str, np.ndarray], base: State, slack: float = 1e-6
) -> None:
    """The same for half precisions: at most one unit in the last place from the rounded oracle."""
    check_passthrough(state, base)
    for name in touched(base):
        want = torch.from_numpy(np.asarray(expected[name])).to(base[name].dtype)
        info = torch.finfo(base[name].dtype)
        ulp = torch.exp2(torch.floor(torch.log2(want.double().abs().clamp_min(info.tiny)))) * info.eps
        error = (state[name].double() - want.double()).abs()
        # Near a cancellation float32 work leaves an error that is large in units of a tiny result.
        allowed = ulp + slack * float(want.double().abs().max())
        assert bool((error <= allowed).all()), f"{name}: {float((error / ulp).max()):.2f} ulp"


def says(message: str, value: object) -> bool:
    """Say whether an error names a value; None is null to a user of the command line."""
    return "got null" in message if value is None else str(value) in message or repr(value) in message


@contextlib.contextmanager
def refused(*parts: str) -> Iterator[list[str]]:
    """The block is refused in one line that every pattern of `parts` matches; the list holds the message afterwards."""
    found: list[str] = []
    with pytest.raises(fbl.MergeError) as caught:
        yield found
    found.append(str(caught.value))
    assert isinstance(caught.value, ValueError)
    assert "\n" not in found[0]
    for part in parts:
        assert re.search(part, found[0]), f"{part!r} is not in {found[0]!r}"


# ---------------------------------------------------------------- a tiny encoder


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5, dim=-1)
        return self.out_proj((weights @ v).transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x)))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class TinyEncoder(nn.Module):
    """Transformer blocks with open_clip key names; some tensors never enter the forward pass."""

    def __init__(
        self, blocks: int = 1, width: int = 8, hidden: int = 12, features: int = 6, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 2, stride=2, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(5, width))
        self.resblocks = nn.ModuleList(Block(width, 2, hidden, dropout) for _ in range(blocks))
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, features))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.leftover = nn.Parameter(torch.zeros(4, 3))
        self.unused_attn = nn.Linear(width, width)
        self.register_buffer("position_ids", torch.arange(5))
        self.register_buffer("empty", torch.zeros(0))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = x + self.positional_embedding[self.position_ids]
        for block in self.resblocks:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj


UNUSED = ("leftover", "unused_attn.weight", "unused_attn.bias", "logit_scale")


class Head(nn.Module):
    """A frozen zero-shot head: normalised features against normalised class vectors."""

    def __init__(self, features: int, classes: int, seed: int, dtype: torch.dtype, scale: float = 6.0) -> None:
        super().__init__()
        weight = torch.randn(classes, features, generator=rng(seed), dtype=torch.float64)
        self.weight = nn.Parameter(F.normalize(weight, dim=1).to(dtype))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.normalize(features, dim=-1) @ self.weight.T


@dataclass
class Setting:
    """Everything `fbl.adapt` takes, small enough for hundreds of steps per second."""

    model: nn.Module
    pretrained: State
    experts: dict[str, State]
    heads: dict[str, nn.Module]
    batches: dict[str, list[Tensor]]

    def arguments(self) -> tuple:
        return self.model, self.pretrained, self.experts, self.heads, self.batches

    def copy(self) -> Setting:
        return copy.deepcopy(self)

    def permuted(self, order: list[str]) -> Setting:
        def pick(mapping: dict) -> dict:
            return {t: mapping[t] for t in order}

        return Setting(self.model, self.pretrained, pick(self.experts), pick(self.heads), pick(self.batches))


def setting(
    tasks: int = 3,
    steps: int = 10,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    size: float = 0.15,
    dropout: float = 0.0,
    blocks: int = 1,
) -> Setting:
    """A randomly initialised encoder, experts around it, heads of different widths, batches whose length changes."""
    g = rng(seed)
    model = TinyEncoder(blocks, dropout=dropout).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 0:
                continue
            noise = torch.randn(parameter.shape, generator=g, dtype=torch.float64) * 0.4
            parameter.copy_((1 + noise if "ln_" in name and name.endswith("weight") else noise).to(dtype))
    pretrained = snapshot(model.state_dict())
    experts = experts_of(pretrained, tasks, 1000 * seed + 500, size)
    heads = {t: Head(6, 3 + i, 77 + 10 * seed + i, dtype) for i, t in enumerate(experts)}
    batches = {
        t: [torch.randn(2 + (i + j) % 3, 1, 4, 4, generator=g, dtype=torch.float64).to(dtype) for j in range(steps)]
        for i, t in enumerate(experts)
    }
    model.requires_grad_(True)
    return Setting(model, pretrained, experts, heads, batches)
