"""WUDI-Merging: the merged vector that interferes least with every task vector's row space (Cheng et al. 2025)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import integer, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.rounding import Still, rounding

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
    takes no part, and entries whose gradient is no more than rounding (one task, orthogonal rows) stay where they are.
    Cost: one product of m × n by n × n per step and matrix.
    """
    for name in experts.pending:
        if len(experts.shape(name)) != 2:
            yield name, experts.combination(name, [1 / len(experts)] * len(experts))
            continue
        equations = _normal_equations(experts, name)
        merged, still = equations.start.requires_grad_(True), Still()
        optimizer = torch.optim.Adam([merged], lr=h.lr, fused=True)
        with torch.no_grad():
            for _ in range(h.steps):
                merged.grad = torch.addmm(equations.target, merged, equations.inner, beta=-2, alpha=2)
                still.settle(merged.grad, functools.partial(equations.bound, merged))
                optimizer.step()
        base = experts.base(name)
        yield name, base + merged.detach().to(base.dtype)


@dataclasses.dataclass(kw_only=True)
class _Equations:
    """2(τ_m A - B), the gradient: Σ_t τ_t [m, n], where it starts, A [n, n] and B [m, n] in float64.

    `rows` [m] is Σ_t ‖τ_t[i]‖, `shares` [n] is Σ_t ‖τ_t[:, j]‖ / ‖τ_t‖, and `tasks` their number.
    """

    start: Tensor
    inner: Tensor
    target: Tensor
    rows: Tensor
    shares: Tensor
    tasks: int

    def bound(self, merged: Tensor) -> Tensor:
        """Return what rounding can make of every entry of the gradient, [m, n].

        Its terms τ_m[i, k] τ_t[l, k] τ_t[l, j] / ‖τ_t‖² and τ_t[i, k] τ_t[l, k] τ_t[l, j] / ‖τ_t‖², of either sign, have sums
        over k and l of at most ‖τ_m[i]‖ and ‖τ_t[i]‖ times ‖τ_t[:, j]‖ / ‖τ_t‖ (Cauchy-Schwarz). Each has gone through sums
        over l, k and tasks, and τ_m is itself a sum of the τ_t.
        """
        rows, columns = merged.shape
        part = rounding(rows + columns + 2 * self.tasks + 8, merged.dtype)
        terms = torch.linalg.vector_norm(merged, dim=1) + 2 * self.rows
        return torch.outer(2 * part * terms, self.shares)


def _normal_equations(experts: Experts, name: str) -> _Equations:
    rows, columns = experts.shape(name)
    device = experts.base(name).device
    merged, target = torch.zeros((2, rows, columns), dtype=torch.float64, device=device)
    inner = torch.zeros((columns, columns), dtype=torch.float64, device=device)
    lengths, shares = torch.zeros_like(merged[:, 0]), torch.zeros_like(inner[0])
    for task in experts.tasks:
        vector = experts.task_vector(task, name).double()
        merged += vector
        square = float(vector.square().sum())
        if square > 0:
            gram = vector.T @ vector / square
            inner += gram
            target += vector @ gram
            lengths += torch.linalg.vector_norm(vector, dim=1)
            shares += torch.linalg.vector_norm(vector, dim=0) / math.sqrt(square)
    return _Equations(start=merged.clone(), inner=inner, target=target, rows=lengths, shares=shares, tasks=len(experts))
