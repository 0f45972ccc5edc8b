"""WUDI-Merging: the merged vector that interferes least with every task vector's row space (Cheng et al. 2025)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import integer, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Wudi:
    """`steps`, `lr`: of Adam from the sum of the task vectors; 400 steps in FusionBench's configuration."""

    steps: int = integer(300, low=0)
    lr: float = real(1e-5, low=0, open_low=True)


@method("wudi", Wudi, label="WUDI-Merging")
def wudi(experts: Experts, h: Wudi) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + τ_m for matrices, τ_m minimising Σ_t ‖(τ_m - τ_t) τ_tᵀ‖² / ‖τ_t‖² by Adam; the average for the rest.

    The gradient is 2(τ_m A - B) with A = Σ_t τ_tᵀτ_t / ‖τ_t‖² and B = Σ_t τ_t τ_tᵀτ_t / ‖τ_t‖²; a task vector of norm 0
    takes no part. Cost: one product of m × n by n × n per step and matrix.
    """
    for name in experts.names:
        if len(experts.shape(name)) != 2:
            yield name, experts.combination(name, [1 / len(experts)] * len(experts))
            continue
        merged, inner, target = _normal_equations(experts, name)
        merged.requires_grad_(True)
        optimizer = torch.optim.Adam([merged], lr=h.lr, fused=True)
        with torch.no_grad():
            for _ in range(h.steps):
                merged.grad = torch.addmm(target, merged, inner, beta=-2, alpha=2)
                optimizer.step()
        base = experts.base(name)
        yield name, base + merged.detach().to(base.dtype)


def _normal_equations(experts: Experts, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ_t τ_t [m, n], A [n, n] and B [m, n] in float64."""
    rows, columns = experts.shape(name)
    device = experts.base(name).device
    merged, target = torch.zeros((2, rows, columns), dtype=torch.float64, device=device)
    inner = torch.zeros((columns, columns), dtype=torch.float64, device=device)
    for task in experts.tasks:
        vector = experts.task_vector(task, name).double()
        merged += vector
        square = float(vector.square().sum())
        if square > 0:
            own = vector.T @ vector / square
            inner += own
            target += vector @ own
    return merged.clone(), inner, target
