"""TSV-Merge: task singular vectors made orthogonal before they are summed (Gargiulo et al. 2025)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import choice, method, real
from fusionbench_lite.weights.experts import MATRIX_POLICIES, Experts, is_factorised
from fusionbench_lite.weights.linalg import inverse_root, rank_of, top_singular

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class TsvM:
    """The settings of TSV-M.

    `scaling`: α, for matrices and averaged tensors alike. `rank_ratio`: part of the singular components each task
    keeps; None is 1/T. `matrices`: which tensors are factorised; "attn_mlp" is AdaRank's re-implementation.
    """

    scaling: float = real(1.0)
    rank_ratio: float | None = real(None, low=0, high=1, open_low=True, optional=True)
    matrices: str = choice("all_2d", MATRIX_POLICIES)


@method("tsv_m", TsvM)
def tsv_m(experts: Experts, h: TsvM) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + α U⊥ Σ̄ V⊥ᵀ for matrices, θ0 + α mean_t τ_t for the rest (TSV-Merge).

    A matrix of which ⌊ρp⌋ components are none stays at θ0.
    """
    ratio = h.rank_ratio if h.rank_ratio is not None else 1 / len(experts)
    for name in experts.names:
        base = experts.base(name)
        if not is_factorised(name, base, h.matrices):
            yield name, base + h.scaling * experts.task_vectors(name).mean(0)
            continue
        rank = rank_of(ratio, min(base.shape))
        if rank:
            left, values, right = orthogonal_components(experts, name, rank)
            merged = (left * values) @ right
            yield name, base + h.scaling * merged.to(base.dtype)


def orthogonal_components(experts: Experts, name: str, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U⊥ [m, Tk], Σ̄ [Tk] and V⊥ᵀ [Tk, n] in float64, the components of the tasks side by side.

    U⊥ and V⊥ are the polar factors of the concatenated singular vectors, Ū (ŪᵀŪ)^{-1/2}: the nearest matrices with
    orthonormal columns.
    """
    parts = [
        top_singular(experts.task_vector(task, name), rank, f"{name!r} of expert {task!r}") for task in experts.tasks
    ]
    left = torch.cat([part[0] for part in parts], dim=1)
    values = torch.cat([part[1] for part in parts])
    right = torch.cat([part[2] for part in parts])
    left = left @ inverse_root(left.T @ left, f"the left singular vectors of {name!r}")
    right = inverse_root(right @ right.T, f"the right singular vectors of {name!r}") @ right
    return left, values, right
