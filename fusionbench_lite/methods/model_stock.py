"""Model Stock: between the pretrained model and the average, by the angles of the task vectors (Jang et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts

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
        if h.granularity == "tensor":
            ratio = _ratio(experts.inner_products(name).unsqueeze(0), h.average)
            yield name, experts.combination(name, [ratio.item() / len(experts)] * len(experts))
            continue
        base, vectors = experts.base(name), experts.task_vectors(name)
        # Row by row, so that the float64 copy stays small.
        rows = (block.reshape(len(experts), -1).double() for block in vectors.unbind(1))  # [T, n / m] each
        products = (row @ row.T for row in rows)  # [T, T] each
        ratio = _ratio(torch.stack([product.cpu() for product in products]), h.average).to(vectors)  # [rows]
        yield name, base + ratio.reshape(-1, *[1] * (base.dim() - 1)) * vectors.mean(0)


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
