"""CART: low-rank task vectors around the average of the experts (Choi et al. 2024)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import SVD, method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import Components, rank_of, top_singular
from fusionbench_lite.weights.matrices import MATRIX_POLICIES, is_factorised
from fusionbench_lite.weights.parallel import in_turns
from fusionbench_lite.weights.ranks import Ranks

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Cart:
    """`scaling`: λ. `rank_ratio`: ρ, the part of the components kept. `matrices`: which tensors are truncated."""

    scaling: float = real(2.3)
    rank_ratio: float = real(0.16, low=0, high=1, open_low=True)
    matrices: str = choice("attn_mlp", MATRIX_POLICIES)


@method("cart", Cart, label="CART", family=SVD)
def cart(experts: Experts, h: Cart) -> Iterator[tuple[str, Tensor]]:
    """θ = θ̄ + λ Σ_t SVD_k(θ_t - θ̄) for matrices with k = max(1, ⌊ρp⌋); every other tensor is the average θ̄.

    Cost: T eigenproblems of side p per matrix, shared through the decomposition cache.
    """
    ranks = Ranks("cart")
    for name in experts.pending:
        mean = experts.mean(name)
        if not is_factorised(name, experts.shape(name), h.matrices) or h.rank_ratio == 1:
            yield name, mean
            continue
        rank = rank_of(h.rank_ratio, min(mean.shape), at_least=1)
        total = mean.to(torch.float64, copy=True)
        components = functools.partial(_centred_components, experts, name, mean, rank, ranks)
        for left, values, right in in_turns(components, experts.tasks):
            total.addmm_(left.mul_(values), right, alpha=h.scaling)
        yield name, total.to(mean.dtype)
    ranks.warn()


def _centred_components(experts: Experts, name: str, mean: Tensor, rank: int, ranks: Ranks, task: str) -> Components:
    what = f"{name!r} of expert {task!r}"
    return top_singular(experts.expert(task, name) - mean, rank, what, ranks.cut(what, rank, sum(mean.shape)))
