"""Model Stock: between the pretrained model and the average, by the angles of the task vectors (Jang et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.walks import Walk

if TYPE_CHECKING:
    from torch import Tensor

OPPOSED = 1e-6
"""Task vectors that cancel make the divisor of the ratio vanish, up to the rounding of an arc cosine: ratio 0 there."""


@dataclasses.dataclass(frozen=True)
class ModelStock:
    """The settings of Model Stock.

    `average`: how more than two experts make one angle, the mean of angles (FusionBench) or of cosines (mergekit).
    `granularity`: one angle per tensor, or per row of the first dimension ("row", filter-wise).
    """

    average: str = choice("angles", ("angles", "cosines"))
    granularity: str = choice("tensor", ("tensor", "row"))


@method("model_stock", ModelStock, label="Model Stock")
def model_stock(experts: Experts, h: ModelStock) -> Iterator[tuple[str, Tensor]]:
    """θ = ρ θ̄ + (1 - ρ) θ0 per tensor, with ρ = T cos φ / (1 + (T - 1) cos φ), φ the angle between task vectors.

    Orthogonal task vectors give θ0, equal ones the expert. Cost: O(T²d), one pass.
    """
    for name in experts.pending:
        yield name, _merged(experts, name, h)


def _merged(experts: Experts, name: str, h: ModelStock) -> Tensor:
    walk, shape = experts.walk(name), experts.shape(name)
    if h.granularity == "tensor":
        ratio = _ratio(walk.products().unsqueeze(0), h.average)
        return experts.combination(name, [ratio.item() / len(experts)] * len(experts), walk)
    return walk.on_base(_by_row(walk, experts.numel(name) // shape[0], h.average)).reshape(shape)


def _by_row(walk: Walk, length: int, average: str) -> Iterator[tuple[slice, Tensor]]:
    """Walk ρ τ̄ with one ρ for every row of this length."""
    for part, block in walk.blocks(unit=length):
        vectors = block.reshape(len(block), -1, length)  # [T, rows, length]
        # Row by row, so that the float64 copy stays small.
        products = [(row @ row.T).cpu() for row in (vectors[:, i].double() for i in range(vectors.shape[1]))]
        ratio = _ratio(torch.stack(products), average).to(block)  # [rows]
        yield part, (ratio.unsqueeze(1) * vectors.mean(0)).reshape(-1)


def _ratio(products: Tensor, average: str) -> Tensor:
    """Return ρ [rows] from the inner products [rows, T, T]; a zero vector is orthogonal to every other."""
    count = products.shape[1]
    if count == 1:
        return torch.ones(len(products), dtype=torch.float64)
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    lengths = norms.unsqueeze(1) * norms.unsqueeze(2)  # [rows, T, T]
    cosines = torch.where(lengths > 0, products / lengths.clamp_min(1e-300), 0.0).clamp(-1, 1)
    pairs = torch.triu_indices(count, count, offset=1)
    values = cosines[:, pairs[0], pairs[1]]
    cosine = values.mean(1) if average == "cosines" else torch.cos(torch.acos(values).mean(1))
    divisor = 1 + (count - 1) * cosine
    return torch.where(divisor > OPPOSED, count * cosine / divisor.clamp_min(OPPOSED), 0.0)
