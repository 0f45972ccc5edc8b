"""The gradient of doGe's loss in Δ, in closed form: the loss is quadratic."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.rounding import Still, rounding

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 64
"""Rows of a matrix whose gradient is computed at once: their task vectors are read from memory once a step."""


class Gradient:
    """G [m, n] at Δ for task vectors [m, T, n] (rows first), λ [T] and the shared space Q [m, k].

    With c_j = ⟨τ_j, τ_j - V0⟩ per row, V0 = Σ_t λ_t τ_t and e_j = c_j - Λ⟨τ_j, Δ⟩, G = -2Λ Σ_j e_j τ_j, `total` being Λ, kept
    out of Q or in it; `whole` takes inner products over the matrix instead of its rows. Where G is no more than rounding
    (V0 = τ_j, a space that holds all of it), it is 0.
    """

    def __init__(
        self, vectors: Tensor, scales: Tensor, total: float, space: Tensor | None, projection: str, *, whole: bool
    ) -> None:
        self.vectors, self.total, self.whole = vectors, total, whole
        self.scales, self.space, self.projection = scales, space, projection
        self.constant = _constant(vectors, scales)
        # Row by row, as e is, and column by column, as the space takes its part: a single entry may be near 0 by chance.
        self.rows, self.columns = Still(dim=1), Still(dim=0)

    def write(self, change: Tensor, out: Tensor) -> None:
        """Write G at Δ."""
        _gradient(self.vectors, self.constant, change, self.total, out, whole=self.whole)
        terms = functools.cache(lambda: self._terms(change))
        self.rows.settle(out, lambda: self._own_rounding() * torch.linalg.vector_norm(terms(), dim=1, keepdim=True))
        if (space := self.space) is not None:
            _project(out, space, self.projection)
            self.columns.settle(
                out, lambda: self._projected_rounding(space) * torch.linalg.vector_norm(terms(), dim=0, keepdim=True)
            )

    def _terms(self, change: Tensor) -> Tensor:
        """Return bounds on the sums of the magnitudes of what the entries of G are made of, [m, n].

        By Cauchy-Schwarz e_j is made of no more than ‖τ_j‖ (‖τ_j‖ + Σ_t |λ_t| ‖τ_t‖ + |Λ| ‖Δ‖), norms of rows.
        """
        weights, total, blocks = self.scales.abs(), abs(self.total), torch.split(self.vectors, ROWS)
        made = []
        for block, rows in zip(blocks, torch.split(change, ROWS), strict=True):
            norms = torch.linalg.vector_norm(block, dim=2)
            moved = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            made.append(2 * total * norms * (norms + (norms @ weights).unsqueeze(1) + total * moved))
        if self.whole:
            shared = torch.cat(made).sum(0)
            made = [shared.expand(len(block), -1) for block in blocks]
        return torch.cat([
            torch.bmm(row.unsqueeze(1), block.abs()).squeeze(1) for row, block in zip(made, blocks, strict=True)
        ])

    def _own_rounding(self) -> float:
        """Return what rounding changes G by, as a part of its terms: V0, inner products, rows where `whole`, tasks."""
        height, tasks, width = self.vectors.shape
        return rounding(width + 2 * tasks + 8 + self.whole * height, self.vectors.dtype)

    def _projected_rounding(self, space: Tensor) -> float:
        """Return the same of a projected column's norm: that of G, of QᵀG (up to √k), of QQᵀG, and what Q lacks of QᵀQ = I.

        A computed space is as far from the one that is meant as it is from orthonormal.
        """
        height, count = space.shape
        precise, dtype = space.double(), space.dtype
        lacks = float(torch.linalg.matrix_norm(precise.T @ precise - torch.eye(count, dtype=torch.float64, device=space.device)))
        products = count**0.5 * (rounding(height, dtype) + rounding(count + 1, dtype)) if count else 0.0
        return self._own_rounding() + products + 2 * lacks


def _constant(vectors: Tensor, scales: Tensor) -> Tensor:
    """Return c [m, T], block by block, so that memory beyond the task vectors is Δ, Adam's moments and the gradient."""
    return torch.cat([
        torch.linalg.vector_norm(part, dim=2).square() - (part @ (scales @ part).unsqueeze(2)).squeeze(2)
        for part in torch.split(vectors, ROWS)
    ])


def _project(gradient: Tensor, space: Tensor, projection: str) -> None:
    """Take the shared directions out of a gradient, or leave them alone ("onto"), in place."""
    inside = space.T @ gradient
    if projection == "onto":
        torch.mm(space, inside, out=gradient)
    else:
        gradient.addmm_(space, inside, alpha=-1)


def _gradient(vectors: Tensor, constant: Tensor, change: Tensor, total: float, out: Tensor, *, whole: bool) -> None:
    """Write G [m, n]; `whole` takes inner products over the matrix instead of its rows."""
    parts = list(zip(*(torch.split(tensor.unsqueeze(1), ROWS) for tensor in (constant, change, out)), strict=True))
    blocks = torch.split(vectors, ROWS)
    if whole:
        inner = torch.stack([(rows @ block.mT).sum((0, 1)) for block, (_, rows, _) in zip(blocks, parts, strict=True)]).sum(0)
        shared = (constant.sum(0) - total * inner).mul_(-2 * total)
    for block, (partial, rows, target) in zip(blocks, parts, strict=True):
        # Row vectors times matrices: the other way round, and elementwise, take twice as long.
        residual = None if whole else torch.baddbmm(partial, rows, block.mT, alpha=-total).mul_(-2 * total)
        torch.bmm(shared.expand(len(block), 1, -1) if residual is None else residual, block, out=target)
