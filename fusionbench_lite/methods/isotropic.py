"""Iso-C: the sum of the task vectors with a flat spectrum (Marczak et al. 2025)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.registry import choice, method, real
from fusionbench_lite.weights.experts import MATRIX_POLICIES, Experts, is_factorised
from fusionbench_lite.weights.linalg import svd, top_singular

if TYPE_CHECKING:
    from torch import Tensor


SMALLEST_BY_GRAM = 1e-4
"""Singular values below this part of the largest lose accuracy in a Gram matrix (1e-16 · 1e8 here): SVD instead."""


@dataclasses.dataclass(frozen=True)
class IsoC:
    """`scaling`: α, for matrices and averaged tensors alike. `matrices`: which tensors are made isotropic."""

    scaling: float = real(1.0)
    matrices: str = choice("all_2d", MATRIX_POLICIES)


@method("iso_c", IsoC)
def iso_c(experts: Experts, h: IsoC) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + α σ̄ U Vᵀ for matrices, with Σ_t τ_t = U Σ Vᵀ; θ0 + α mean_t τ_t for the rest (Iso-C)."""
    for name in experts.names:
        base = experts.base(name)
        vectors = experts.task_vectors(name)
        if is_factorised(name, base, h.matrices):
            yield name, base + h.scaling * isotropic(vectors.sum(0), f"the summed task vectors of {name!r}")
        else:
            yield name, base + h.scaling * vectors.mean(0)


def isotropic(matrix: Tensor, what: str) -> Tensor:
    """Return σ̄ U Vᵀ [m, n] with σ̄ the mean of all min(m, n) singular values; a zero matrix stays zero."""
    size = min(matrix.shape)
    left, values, right = top_singular(matrix, size, what)
    if values[0] > 0 and values[-1] <= values[0] * SMALLEST_BY_GRAM:
        # The Gram matrix squares the condition number; a direct SVD still resolves the small directions.
        left, values, right = svd(matrix.double(), what)
    return (values.mean() * (left @ right)).to(matrix.dtype)
