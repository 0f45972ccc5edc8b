"""Decompositions of one weight matrix: float64 inside, a fallback where LAPACK does not converge."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.decompositions import cached
from fusionbench_lite.weights.stopwatch import timed

if TYPE_CHECKING:
    from torch import Tensor

NULL_RATIO = 1e-12
"""Eigenvalues of a Gram matrix below this part of the largest are its null space: float64 cannot tell them from 0."""

SMALLEST_BY_GRAM = 3e-5
"""Singular vectors of values below this part of the largest lose accuracy in a Gram matrix (1e-16 / ratio², 1e-7
here): where they count as much as the others, the matrix itself is decomposed."""

SMALLEST_IN_DOUBLE = 1e-4
"""The same where results are float64: 1e-8 is left there."""

_STRIP, _ROWS = 192, 256

Components = tuple["Tensor", "Tensor", "Tensor"]
"""U [m, k], s [k] descending and Vᵀ [k, n]."""

Watch = Callable[["Tensor"], None]
"""Is shown the eigenvalues of a Gram matrix, largest first."""


def rank_of(ratio: float, size: int, *, at_least: int = 0) -> int:
    """Return ⌊ratio · size⌋, the number of singular components that a rank ratio keeps, and `at_least` that many."""
    return max(at_least, int(ratio * size))


@timed
def svd(matrix: Tensor, what: str) -> Components:
    """Return the thin SVD (U [m, p], s [p] descending, Vᵀ [p, n]) in the dtype of `matrix`, p = min(m, n).

    `what` names the matrix in the error. Where the divide-and-conquer driver fails, the Gram matrix is decomposed.
    Raises MergeError when that fails as well.
    """

    def compute() -> dict[str, Tensor]:
        precise = matrix.double()
        try:
            left, values, right = torch.linalg.svd(precise, full_matrices=False)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            left, values, right = top_singular(precise, min(matrix.shape), what)
        return {"left": left.to(matrix.dtype), "values": values.to(matrix.dtype), "right": right.T.to(matrix.dtype)}

    size = min(matrix.shape)
    shapes = {"left": (matrix.shape[0], size), "values": (size,), "right": (matrix.shape[1], size)}
    factors = cached(matrix, "svd", shapes, compute)
    # In one memory layout, on which the bits of later products may depend, whether computed or read.
    return factors["left"].contiguous(), factors["values"], factors["right"].contiguous().T


def decompose(matrix: Tensor, what: str) -> Components:
    """Return all p = min(m, n) singular components in float64, the small ones as accurate as the large ones.

    From the Gram matrix where that resolves the smallest value, else by the SVD; a zero matrix has zero components.
    """
    left, values, right = top_singular(matrix, min(matrix.shape), what)
    if values[0] > 0 and values[-1] <= values[0] * SMALLEST_BY_GRAM:
        left, values, right = svd(matrix.double(), what)
    return left, values, right


@timed
def top_singular(matrix: Tensor, rank: int, what: str, watch: Watch | None = None) -> Components:
    """Return the `rank` leading singular components (U [m, k], s [k], Vᵀ [k, n]) in float64.

    Exact to about 1e-16·(σ_1/σ_i)² through the Gram matrix of the shorter side (docs/decisions.md, D15); components
    that float64 cannot tell from zero come back as zeros, so k directions may hold fewer than k components. `watch` is
    shown the squares of all singular values.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    precise = matrix.double() if tall else matrix.T.double()

    def compute() -> dict[str, Tensor]:
        weights, vectors = _eigh(_lower_gram(precise), what)
        return {"weights": weights.flip(0), "vectors": vectors.flip(1)[:, :rank].clone(memory_format=torch.contiguous_format)}

    gram = cached(matrix, "gram", {"weights": (min(matrix.shape),), "vectors": (min(matrix.shape), rank)}, compute)
    if watch is not None:
        watch(gram["weights"])
    # In one memory layout, on which the bits of the product may depend, whether computed or read.
    weights, vectors = gram["weights"][:rank].clamp_min(0), gram["vectors"][:, :rank].contiguous()
    present = weights > NULL_RATIO * weights[:1]
    values = torch.where(present, weights.sqrt(), 0.0)
    left = (precise @ vectors).mul_(torch.where(present, 1 / values.clamp_min(1e-300), 0.0))
    right = torch.where(present, vectors, 0.0)
    return (left, values, right.T) if tall else (right, values, left.T)


def _lower_gram(tall: Tensor) -> Tensor:
    """Return AᵀA [n, n] with only its lower triangle filled, which is all that an eigendecomposition reads."""
    columns = tall.shape[1]
    if columns < 2 * _STRIP:
        return tall.T @ tall
    gram = torch.zeros((columns, columns), dtype=tall.dtype, device=tall.device)
    for start in range(0, columns, _STRIP):
        end = min(start + _STRIP, columns)
        torch.mm(tall[:, start:end].T, tall[:, :end], out=gram[start:end, :end])
    return gram


def orthonormalise_(left: Tensor, right: Tensor, what: str, dtype: torch.dtype) -> None:
    """Replace U [m, K] and Vᵀ [K, n] by their polar factors, U (UᵀU)^{-1/2} and (VᵀV)^{-1/2} Vᵀ, in place.

    These are the nearest matrices with orthonormal columns and rows; null directions become zeros. Through the Gram
    matrix, in which the condition number counts twice, only where it leaves enough digits for results of this dtype.
    """
    sides = f"the left singular vectors of {what}", f"the right singular vectors of {what}"
    root = _root(left.T @ left, sides[0], dtype)
    if root is None:
        left.copy_(_polar(left, sides[0]))
    else:
        for rows in torch.split(left, _ROWS):
            rows.copy_(rows @ root)
    root = _root(right @ right.T, sides[1], dtype)
    if root is None:
        right.copy_(_polar(right, sides[1]))
    else:
        for columns in torch.split(right, _ROWS, dim=1):
            columns.copy_(root @ columns)


def orthonormal_rows(rows: Tensor, what: str, dtype: torch.dtype) -> Tensor:
    """Return the polar factor (RRᵀ)^{-1/2} R of R [K, n] in float64, as `orthonormalise_` does."""
    root = _root(rows @ rows.T, what, dtype)
    return _polar(rows, what) if root is None else root @ rows


def _root(gram: Tensor, what: str, dtype: torch.dtype) -> Tensor | None:
    """Return G^{-1/2}, or None where G leaves its smallest values too few digits: float32 needs 7 of them, float64 8 here."""
    root, smallest = _inverse(gram, torch.rsqrt, what)
    limit = SMALLEST_IN_DOUBLE if dtype == torch.float64 else SMALLEST_BY_GRAM
    return root if smallest > limit**2 else None


def _polar(matrix: Tensor, what: str) -> Tensor:
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise MergeError(f"the decomposition of {what} did not converge: check the experts' values") from error
    factor: Tensor = (left * (values > NULL_RATIO**0.5 * values[:1])) @ right
    return factor


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return L R [m, n] in a dtype narrower than that of the factors, some rows at a time."""
    result = torch.empty((len(left), right.shape[1]), dtype=dtype, device=left.device)
    for rows, target in zip(torch.split(left, _ROWS), torch.split(result, _ROWS), strict=True):
        target.copy_(rows @ right)
    return result


@timed
def low_rank(left: Tensor, right: Tensor) -> Components:
    """Return the singular components of L R in float64, from QR of L [m, r] and Rᵀ [n, r] and an SVD of r × r."""
    first, upper = torch.linalg.qr(left.double())
    second, lower = torch.linalg.qr(right.double().T)
    u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return first @ u, values, v @ second.T


def pseudo_inverse(gram: Tensor, what: str) -> Tensor:
    """Return the pseudo-inverse G⁺ of a positive semi-definite float64 matrix."""
    return _inverse(gram, torch.reciprocal, what)[0]


def _inverse(gram: Tensor, invert: Callable[[Tensor], Tensor], what: str) -> tuple[Tensor, float]:
    """Return the matrix function of G that inverts its eigenvalues, those of the null space aside, and the smallest that
    is inverted as a part of the largest."""
    weights, vectors = _eigh(gram, what)
    present = (weights > NULL_RATIO * weights[-1:].clamp_min(0)) & (weights > 0)
    scale = torch.where(present, invert(weights.clamp_min(1e-300)), 0.0)
    smallest = float(weights[present][0] / weights[-1]) if bool(present.any()) else 1.0
    return (vectors * scale) @ vectors.T, smallest


def eigenbasis(gram: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Return eigenvalues [n], largest first and at least 0, and eigenvectors [n, n] of a float64 Gram matrix."""
    weights, vectors = _eigh(gram, what)
    return weights.flip(0).clamp_min(0), vectors.flip(1)


def numerical_rank(values: Tensor, rounding: float = 0.0) -> int:
    """Return how many singular values, largest first, are above float64's and the checkpoint's rounding."""
    if len(values) == 0:
        return 0
    floor = max(rounding, float(values[0]) * NULL_RATIO**0.5)
    return int((values > floor).sum())


def _eigh(gram: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (ascending) and eigenvectors of a symmetric float64 matrix."""
    try:
        values, vectors = torch.linalg.eigh(gram)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise MergeError(f"the eigendecomposition of {what} did not converge: check the expert's values") from error
    return values, vectors
