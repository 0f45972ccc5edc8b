"""CART: low-rank task vectors around the average of the experts (Choi et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.registry import choice, method, real
from fusionbench_lite.weights.experts import MATRIX_POLICIES, Experts, is_factorised
from fusionbench_lite.weights.linalg import rank_of, top_singular

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Cart:
    """`scaling`: λ. `rank_ratio`: ρ, the part of the components kept. `matrices`: which tensors are truncated."""

    scaling: float = real(2.3)
    rank_ratio: float = real(0.16, low=0, high=1, open_low=True)
    matrices: str = choice("attn_mlp", MATRIX_POLICIES)


@method("cart", Cart)
def cart(experts: Experts, h: Cart) -> Iterator[tuple[str, Tensor]]:
    """θ = θ̄ + λ Σ_t SVD_k(θ_t - θ̄) for matrices with k = max(1, ⌊ρp⌋); every other tensor is the average θ̄."""
    for name in experts.names:
        mean = experts.mean(name)
        if not is_factorised(name, mean, h.matrices) or h.rank_ratio == 1:
            yield name, mean
            continue
        rank = rank_of(h.rank_ratio, min(mean.shape), at_least=1)
        total = mean.double().clone()
        for task in experts.tasks:
            centred = experts.expert(task, name) - mean
            left, values, right = top_singular(centred, rank, f"{name!r} of expert {task!r}")
            total += h.scaling * ((left * values) @ right)
        yield name, total.to(mean.dtype)
