"""Frozen heads of language models: features to logits, from the tensors of a task's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import MergeError, did_you_mean


class LinearHead(nn.Module):
    """Logits W (s f) + b of features f [B, d]; W [C, d] and b [C], 0 where there is none, are constant."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: float = 1.0, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C]."""
        return nn.functional.linear(features * self.scale, self.weight, self.bias)


class RobertaHead(nn.Module):
    """Logits V tanh(W f + w) + v of features f [B, d], without dropout; all is constant."""

    def __init__(self, dense: Tensor, dense_bias: Tensor, out: Tensor, out_bias: Tensor) -> None:
        super().__init__()
        for name, tensor in (("dense", dense), ("dense_bias", dense_bias), ("out", out), ("out_bias", out_bias)):
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C]."""
        inner = torch.tanh(nn.functional.linear(features, self.get_buffer("dense"), self.get_buffer("dense_bias")))
        return nn.functional.linear(inner, self.get_buffer("out"), self.get_buffer("out_bias"))


def needed(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor of a checkpoint. Raises MergeError where it has none of this name."""
    if name not in weights:
        raise MergeError(f"the checkpoint has no {name!r}, which the head is made of: {did_you_mean(name, weights)}")
    return weights[name]
