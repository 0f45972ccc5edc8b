"""MetaGPT: task arithmetic with closed-form coefficients (Zhou et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import NoHyperparameters, method
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from torch import Tensor


@method("metagpt", label="MetaGPT")
def metagpt(experts: Experts, h: NoHyperparameters) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + Σ_t λ_t τ_t with λ_t = ‖τ_t‖² / Σ_s ‖τ_s‖², norms over the whole model.

    The minimiser of the mean squared distance to the experts for orthogonal task vectors and a linear loss; the
    coefficients add up to 1. They are 0 where no expert moved. Cost: O(Td), two passes.
    """
    squares = torch.zeros(len(experts), dtype=torch.float64)
    for name in experts.names:
        for _, vectors in experts.blocks(name):
            squares += torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).square().cpu()
    total = float(squares.sum())
    weights = (squares / total).tolist() if total > 0 else [0.0] * len(experts)
    for name in experts.pending:
        yield name, experts.combination(name, weights)
