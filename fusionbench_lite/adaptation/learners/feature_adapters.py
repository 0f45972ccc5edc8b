"""Adapters on final features: what Representation Surgery removes from them, its loss, and the gradients in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fusionbench_lite.adaptation.draws import normal, uniform
from fusionbench_lite.adaptation.learners.frozen import linear_start

Values = Mapping[str, Tensor]
"""The weights of the adapters of n tasks, each [n, ...]."""


class Adapter(Protocol):
    """What an adapter computes and minimises, for n tasks at once. Features are [n, B, d]; rows of zeros add nothing."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its weights."""

    def start(self, part: str, width: int, task: str) -> Tensor:
        """Return the start of a task's weight."""

    def adapt(self, values: Values, merged: Tensor) -> Tensor:
        """Return the adapted features."""

    def differentiate(
        self, values: Values, merged: Tensor, expert: Tensor, share: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the losses [n], Σ over examples times `share` [n], and their gradients, those of `parts`."""

    def noise(self, task: str, shape: Sequence[int], key: Sequence[int]) -> Tensor | None:
        """Return the noise of a task's update for its features [B, d]; None where there is none."""


class Reduction:
    """ẑ = z - U relu(D z), with U = 0 at the start; the loss is the mean distance |ẑ - y| to the expert's feature y."""

    parts = ("down", "up")

    def __init__(self, rank: int, seed: int) -> None:
        self.rank, self.seed = rank, seed

    def start(self, part: str, width: int, task: str) -> Tensor:
        """Return D [rank, d] or U [d, rank]."""
        if part == "up":
            return torch.zeros(width, self.rank, dtype=torch.float64)
        return linear_start(uniform((self.rank, width), self.seed, "surgery", task, "down"))

    def adapt(self, values: Values, merged: Tensor) -> Tensor:
        """Return ẑ."""
        return merged - torch.relu(merged @ values["down"].mT) @ values["up"].mT

    def differentiate(
        self, values: Values, merged: Tensor, expert: Tensor, share: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the losses and the gradients of D and U, by the chain rule (docs/decisions.md, D4)."""
        inner = torch.relu(merged @ values["down"].mT)
        difference = merged - inner @ values["up"].mT - expert
        share = share / merged.shape[-1]
        removed = difference.sign() * -share[:, None, None]
        through = (removed @ values["up"]).mul_(inner > 0)
        return difference.abs().sum((1, 2)) * share, (through.mT @ merged, removed.mT @ inner)

    def noise(self, task: str, shape: Sequence[int], key: Sequence[int]) -> Tensor | None:
        """Return None."""
        return None


class Probabilistic:
    """ẑ = z - (μ + exp(ℓ/2) ε), μ = M r, ℓ = V r, r = relu(D z), with M = V = 0 at the start; evaluation subtracts μ.

    The loss is the mean distance |ẑ - y| and `kl` times KL(N(μ, e^ℓ) ‖ N(0, 1)), a sum over d.
    """

    parts = ("down", "mean", "log_variance")

    def __init__(self, hidden: int, kl: float, seed: int) -> None:
        self.hidden, self.kl, self.seed = hidden, kl, seed

    def start(self, part: str, width: int, task: str) -> Tensor:
        """Return D [hidden, d], M or V [d, hidden]."""
        if part != "down":
            return torch.zeros(width, self.hidden, dtype=torch.float64)
        return linear_start(uniform((self.hidden, width), self.seed, "prob_surgery", task, "down"))

    def adapt(self, values: Values, merged: Tensor) -> Tensor:
        """Return z - μ."""
        return merged - torch.relu(merged @ values["down"].mT) @ values["mean"].mT

    def differentiate(
        self, values: Values, merged: Tensor, expert: Tensor, share: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the losses and the gradients of D, M and V at this noise; without noise those of z - μ."""
        inner = torch.relu(merged @ values["down"].mT)
        mean, log_variance = inner @ values["mean"].mT, inner @ values["log_variance"].mT
        spread = torch.zeros_like(merged) if noise is None else (log_variance / 2).exp() * noise
        variance = log_variance.exp()
        difference = merged - mean - spread - expert
        divergence = (mean.square() + variance - log_variance - 1).sum((1, 2)) / 2
        width, share = merged.shape[-1], share[:, None, None]
        removed = difference.sign() / -width
        to_mean = (removed + self.kl * mean) * share
        to_variance = (removed * spread + self.kl * (variance - 1)) * (share / 2)
        through = (to_mean @ values["mean"] + to_variance @ values["log_variance"]).mul_(inner > 0)
        losses = (difference.abs().sum((1, 2)) / width + self.kl * divergence) * share[:, 0, 0]
        return losses, (through.mT @ merged, to_mean.mT @ inner, to_variance.mT @ inner)

    def noise(self, task: str, shape: Sequence[int], key: Sequence[int]) -> Tensor | None:
        """Return ε."""
        return normal(shape, self.seed, "prob_surgery", task, "noise", *key)
