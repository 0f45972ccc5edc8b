"""Task singular vectors: TSV-Merge makes them orthogonal before they are summed, TSV-Compress keeps the leading ones
of every task (Gargiulo et al. 2025)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import SVD, method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.compact import LowRank, Own, PerTask
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import Components, orthonormalise_, product, rank_of, top_singular
from fusionbench_lite.weights.matrices import MATRIX_POLICIES, is_factorised
from fusionbench_lite.weights.parallel import each
from fusionbench_lite.weights.ranks import RANKS, Ranks, task_components

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class TsvM:
    """The settings of TSV-M.

    `scaling`: α, for matrices and averaged tensors alike. `rank_ratio`: ρ, part of the singular components each task
    keeps; None is 1/T. `matrices`: which tensors are factorised; "attn_mlp" is AdaRank's re-implementation.
    `rank`: "numerical" takes no components beyond a task vector's numerical rank, which "fixed" fills with noise.
    """

    scaling: float = real(1.0)
    rank_ratio: float | None = real(None, low=0, high=1, open_low=True, optional=True)
    matrices: str = choice("all_2d", MATRIX_POLICIES)
    rank: str = choice("fixed", RANKS)


@dataclasses.dataclass(frozen=True)
class TsvC:
    """`rank_ratio`: ρ, part of the singular components each task keeps; None is 1/T."""

    rank_ratio: float | None = real(None, low=0, high=1, open_low=True, optional=True)


@method("tsv_m", TsvM, label="TSV-M", family=SVD)
def tsv_m(experts: Experts, h: TsvM) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + α U⊥ Σ̄ V⊥ᵀ for matrices, θ0 + α mean_t τ_t for the rest (TSV-Merge): of every τ_t the leading k = ⌊ρp⌋
    components side by side, Ū Σ̄ V̄ᵀ, with U⊥ = Ū (ŪᵀŪ)^{-1/2} and V⊥ = V̄ (V̄ᵀV̄)^{-1/2}.

    A matrix of which ⌊ρp⌋ components are none stays at θ0. Cost: T eigenproblems of side p and two of side Tk per
    matrix, shared through the decomposition cache.
    """
    ratio = h.rank_ratio if h.rank_ratio is not None else 1 / len(experts)
    ranks = Ranks("tsv_m")
    for name in experts.pending:
        shape = experts.shape(name)
        if not is_factorised(name, shape, h.matrices):
            yield name, experts.combination(name, [h.scaling / len(experts)] * len(experts))
            continue
        wanted = rank_of(ratio, min(shape))
        if wanted:
            left, values, right = side_by_side(experts, name, wanted, h.rank, ranks)
            orthonormalise_(left, right, repr(name), experts.work_dtype(name))
            merged = product(left.mul_(values), right, experts.work_dtype(name))
            yield name, merged.mul_(h.scaling).add_(experts.base(name))
    ranks.warn()


def side_by_side(experts: Experts, name: str, wanted: int, mode: str, ranks: Ranks) -> Components:
    """Return Ū [m, Tk], Σ̄ [Tk] and V̄ᵀ [Tk, n] in float64; a task with fewer components than k leaves zeros."""
    (rows, columns), total = experts.shape(name), wanted * len(experts)
    device = experts.base(name).device
    left = torch.zeros((rows, total), dtype=torch.float64, device=device)
    values = torch.zeros(total, dtype=torch.float64, device=device)
    right = torch.zeros((total, columns), dtype=torch.float64, device=device)

    def fill(number: int) -> None:
        u, sigma, v = task_components(experts, name, wanted, mode, ranks, experts.tasks[number])
        columns = slice(number * wanted, number * wanted + len(sigma))
        left[:, columns], values[columns], right[columns] = u, sigma, v

    each(fill, range(len(experts)))
    return left, values, right


def _learned(of: Architecture, tasks: int, h: TsvC) -> costs.Learned:
    ratio = 1 / tasks if h.rank_ratio is None else h.rank_ratio
    each = sum(
        rank_of(ratio, min(shape)) * sum(shape) if len(shape) == 2 else math.prod(shape)
        for name, shape in of.tensors.items() if name not in of.leftovers
    )
    return costs.Learned({}, tasks * each, f"{each:,} per task", task_id=True)


@method("tsv_c", TsvC, per_task=True, label="TSV-C", learned=_learned)
def tsv_c(experts: Experts, h: TsvC) -> Iterator[tuple[str, PerTask]]:
    """θ̂_t = θ0 + SVD_k(τ_t) for every matrix with k = ⌊ρp⌋, the expert's own tensor else (TSV-Compress); one model per task.

    Stored as k(m + n) numbers per matrix and task. Cost: T eigenproblems of side p per matrix.
    """
    ratio = h.rank_ratio if h.rank_ratio is not None else 1 / len(experts)
    ranks = Ranks("tsv_c")
    for name in experts.names:
        shape = experts.shape(name)
        if len(shape) != 2:
            yield name, Own(experts, name)
            continue
        factors = each(functools.partial(_truncated, experts, name, rank_of(ratio, min(shape)), ranks), experts.tasks)
        yield name, LowRank(experts, name, tuple(pair[0] for pair in factors), tuple(pair[1] for pair in factors))
    ranks.warn()


def _truncated(experts: Experts, name: str, rank: int, ranks: Ranks, task: str) -> tuple[Tensor, Tensor]:
    """Return U_k Σ_k [m, k] and V_kᵀ [k, n] of one task vector in the work dtype."""
    what = f"{name!r} of expert {task!r}"
    watch = ranks.cut(what, rank, sum(experts.shape(name)))
    left, values, right = top_singular(experts.task_vector(task, name), rank, what, watch)
    dtype = experts.work_dtype(name)
    return (left * values).to(dtype), right.to(dtype, memory_format=torch.contiguous_format)
