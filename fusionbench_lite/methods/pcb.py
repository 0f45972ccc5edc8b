"""PCB-Merging: parameters compete within and between tasks (Du et al. 2024).

The released scripts differ in how tasks compete with each other: "A" (pcb-merging.py) multiplies raw task vectors,
"B" (pcb.py, the script that needs no validation data) raw with normalised ones, "C" (pcb_ES.py, whose λ is searched)
normalised ones pairwise. The paper's softmax and 0/1 drop mask are in none of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, integer, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.ties import Vectors
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.order import kth_values

if TYPE_CHECKING:
    from torch import Tensor

CLIPPED = {"A": 1e-4, "B": 0.01, "C": 0.01}
"""The part of the magnitudes that is clipped at either end."""


@dataclasses.dataclass(frozen=True)
class PcbMerging:
    """The settings of PCB-Merging.

    `ratio`: r, the part of each task's entries with a positive score. `scaling`: λ. `variant`: which released script.
    `virtual_zeros`: zero coordinates counted in the quantiles beyond those of the state dict, as in TIES-Merging.
    """

    ratio: float = real(0.05, low=0, high=1, open_low=True)
    scaling: float = real(1.2)
    variant: str = choice("B", ("A", "B", "C"))
    virtual_zeros: int = integer(0, low=0)


@method("pcb_merging", PcbMerging, label="PCB-Merging")
def pcb_merging(experts: Experts, h: PcbMerging) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ Σ_t τ̂_t s_t / Σ_t s_t, with scores s_t from β_t = exp(T ν_t²) ⊙ inter_t above its (1 - r) quantile.

    ν is the clipped magnitude, normalised to [0, 1]; inter_t is tanh(τ_t Σ_s sgn(τ_s) ν_s) in variant B. Arithmetic is
    float64: a score just above the quantile decides alone where no other task competes. Cost: O(T²d) in variant C,
    O(Td) else, ten passes.
    """
    size = h.virtual_zeros + sum(experts.numel(name) for name in experts.names)
    if not size:
        return
    competition = _Competition(experts, h.variant, size, h.virtual_zeros)
    floor = competition.quantile(math.floor(size * (1 - h.ratio))).unsqueeze(1)
    spread = competition.largest().unsqueeze(1) - floor
    for name in experts.names:
        merged = experts.new(name)
        for part, block in experts.blocks(name):
            clipped, balance = competition.balance(block)
            # 0/0 reads as no contribution: all entries of such a task score the same.
            above = (balance - floor.to(balance.device)).clamp_min(0)
            scores = torch.where(spread.to(above.device) > 0, above / spread.to(above.device).clamp_min(1e-300), 0.0)
            merged[part] = ((clipped * scores).sum(0) / scores.sum(0).clamp_min(1e-12)).to(merged.dtype)
        yield name, experts.base(name) + h.scaling * merged.reshape(experts.shape(name))


class _Competition:
    """The balance β_t of every coordinate, from blocks of task vectors and the quantiles of their magnitudes [T]."""

    def __init__(self, experts: Experts, variant: str, size: int, virtual_zeros: int) -> None:
        self.experts, self.variant, self.virtual_zeros = experts, variant, virtual_zeros
        part = CLIPPED[variant]
        self.low = self._magnitude(math.floor(size * part))
        self.high = self._magnitude(max(math.floor(size * (1 - part) - 1), 0))

    def _magnitude(self, index: int) -> Tensor:
        wide = Vectors.of(self.experts, self.experts.names).dtype
        thresholds = kth_values(
            lambda: (block.to(wide) for _, block in self._blocks()), index + 1, self.virtual_zeros, magnitude=True
        )
        return thresholds.double()

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for name in self.experts.names:
            yield from self.experts.blocks(name)

    def quantile(self, index: int) -> Tensor:
        """Return the value of this index, from 0, among the sorted balances of each task, [T]."""
        return kth_values(lambda: (self.balance(block)[1] for _, block in self._blocks()), index + 1, self.virtual_zeros)

    def largest(self) -> Tensor:
        """Return the largest balance of each task, [T]."""
        scores = torch.full((len(self.experts),), 0.0 if self.virtual_zeros else -math.inf, dtype=torch.float64)
        for _, block in self._blocks():
            scores = torch.maximum(scores, self.balance(block)[1].amax(1).cpu())
        return scores

    def balance(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clipped task vectors τ̂ and their balance β, both [T, length] in float64."""
        vectors = block.double()
        low, high = self.low.to(block.device).unsqueeze(1), self.high.to(block.device).unsqueeze(1)
        magnitude = torch.minimum(torch.maximum(vectors.abs(), low), high)
        spread = high - low
        normalised = torch.where(spread > 0, (magnitude - low) / spread.clamp_min(1e-300), 0.0)
        signed = vectors.sign() * normalised
        if self.variant == "A":
            between = torch.tanh(vectors * vectors.sum(0))
        elif self.variant == "B":
            between = torch.tanh(vectors * signed.sum(0))
        else:
            between = sum((torch.tanh(signed * other) for other in signed), torch.zeros_like(signed))
        return vectors.sign() * magnitude, torch.exp(len(vectors) * normalised.square()) * between
