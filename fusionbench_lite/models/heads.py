"""Frozen classification heads in CLIP's form."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ZeroShotHead(nn.Module):
    """Logits as scaled cosines between features and class embeddings, as in CLIP's zero-shot head.

    `weight` [C, d] holds one unit row per class; `scale` is the factor of the cosines (100 in CLIP).
    """

    weight: Tensor

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("weight", nn.functional.normalize(weight, dim=-1))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of features [B, d]."""
        return self.scale * nn.functional.normalize(features, dim=-1) @ self.weight.T


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats of softmax(logits) for each row, [B] from [B, C] (AdaMerging, Eq. 4).

    p log p is 0 at p = 0: logits of -inf, by which heads mask classes, add nothing, and their gradient is 0.
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * without_masked(log_probabilities)).sum(-1)


def without_masked(log_probabilities: Tensor) -> Tensor:
    """Return log p with 0 where p is 0, so that p log p and its gradient are 0 there."""
    return log_probabilities.masked_fill(log_probabilities == -torch.inf, 0.0)


def random_embeddings(classes: int, width: int, seed: int) -> Tensor:
    """Return unit rows [classes, width] drawn from a seed: what a text tower would give, without one."""
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(classes, width, generator=generator), dim=-1)
