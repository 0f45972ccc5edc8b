"""Decompositions of one weight matrix: float64 inside, a fallback where LAPACK does not converge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError
from fusionbench_lite.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

NULL_RATIO = 1e-12
"""Eigenvalues of a Gram matrix below this part of the largest are its null space: float64 cannot tell them from 0."""


def rank_of(ratio: float, size: int, *, at_least: int = 0) -> int:
    """Return ⌊ratio · size⌋, the number of singular components that a rank ratio keeps, and `at_least` that many."""
    return max(at_least, int(ratio * size))


def svd(matrix: Tensor, what: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD (U [m, p], s [p] descending, Vᵀ [p, n]) in the dtype of `matrix`, p = min(m, n).

    `what` names the matrix in the error. Where the divide-and-conquer driver fails, the Gram matrix is decomposed.
    Raises MergeError when that fails as well.
    """
    precise = matrix.double()
    try:
        left, values, right = torch.linalg.svd(precise, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        left, values, right = _svd_by_gram(precise, what)
    return left.to(matrix.dtype), values.to(matrix.dtype), right.to(matrix.dtype)


def top_singular(matrix: Tensor, rank: int, what: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `rank` leading singular components (U [m, k], s [k], Vᵀ [k, n]) in float64.

    Exact to about 1e-16·(σ_1/σ_i)² through the Gram matrix of the shorter side (specification §0.4); components
    that float64 cannot tell from zero come back as zeros, so k directions may hold fewer than k components.
    """
    if matrix.shape[0] < matrix.shape[1]:
        left, values, right = top_singular(matrix.T, rank, what)
        return right.T, values, left.T
    precise = matrix.double()
    weights, vectors = _eigh(precise.T @ precise, what)
    weights, vectors = weights.flip(0)[:rank].clamp_min(0), vectors.flip(1)[:, :rank]
    values = weights.sqrt()
    present = weights > NULL_RATIO * weights[:1]
    values = torch.where(present, values, 0.0)
    left = (precise @ vectors) * torch.where(present, 1 / values.clamp_min(1e-300), 0.0)
    return left, values, torch.where(present, vectors, 0.0).T


def inverse_root(gram: Tensor, what: str) -> Tensor:
    """Return the symmetric pseudo-inverse square root G^{-1/2} of a positive semi-definite float64 matrix."""
    weights, vectors = _eigh(gram, what)
    present = weights > NULL_RATIO * weights[-1:].clamp_min(0)
    scale = torch.where(present & (weights > 0), weights.clamp_min(1e-300).rsqrt(), 0.0)
    return (vectors * scale) @ vectors.T


def _svd_by_gram(matrix: Tensor, what: str) -> tuple[Tensor, Tensor, Tensor]:
    return top_singular(matrix, min(matrix.shape), what)


def _eigh(gram: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (ascending) and eigenvectors of a symmetric float64 matrix."""
    try:
        values, vectors = torch.linalg.eigh(gram)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise MergeError(f"the eigendecomposition of {what} did not converge: check the expert's values") from error
    return values, vectors
