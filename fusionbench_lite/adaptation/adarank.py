"""AdaRank: learned masks on the singular components of the task vectors (Lee et al. 2025).

Released code exists for the TA and CART starts; the TSV-M start follows reading (B) of the specification (§3.5): the
leading components are whitened as in static TSV-M, the others are held raw with their mask off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import choice, flag, method, real
from fusionbench_lite.weights.experts import MATRIX_POLICIES, Experts, is_factorised
from fusionbench_lite.weights.linalg import NULL_RATIO, decompose, inverse_root, rank_of
from fusionbench_lite.weights.parallel import each

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation

LEARN = ("both", "coefficients", "masks")


@dataclasses.dataclass(frozen=True)
class AdaRankTa:
    """`scaling`: initial λ of every task and tensor. `rank_ratio`: ρ, the part of the components that start active.
    `temperature`: κ of the mask. `lr`: Adam's learning rate for λ and mask logits. `learn`: what is learned, the rest
    keeps its start. `top_only`: only the initially active components exist. `matrices`: which tensors carry masks."""

    scaling: float = real(0.3)
    rank_ratio: float | None = real(1.0, low=0, high=1, open_low=True)
    temperature: float = real(10.0, low=0, open_low=True)
    lr: float = real(1e-3, low=0, open_low=True)
    learn: str = choice("both", LEARN)
    top_only: bool = flag(False)
    matrices: str = choice("attn_mlp", MATRIX_POLICIES)


@dataclasses.dataclass(frozen=True)
class AdaRankCart(AdaRankTa):
    """As AdaRankTa, around the average of the experts; defaults are those of ViT-B/32 with 8 tasks."""

    scaling: float = real(2.3)
    rank_ratio: float | None = real(0.16, low=0, high=1, open_low=True)


@dataclasses.dataclass(frozen=True)
class AdaRankTsvM(AdaRankTa):
    """As AdaRankTa, from TSV-M. `rank_ratio`: ρ, the part of the components that start active; None is 1/T."""

    scaling: float = real(1.0)
    rank_ratio: float | None = real(None, low=0, high=1, open_low=True, optional=True)


@method("adarank_ta", AdaRankTa, adaptive=True)
def adarank_ta(experts: Experts, h: AdaRankTa) -> Parametrisation:
    """θ_l = θ0_l + Σ_t λ_tl U_tl diag(b_tl ⊙ s_tl) V_tlᵀ from the task vectors θ_t - θ0 (AdaRank, Eq. 5).

    U diag(s) Vᵀ are the decomposed matrices, b = 1[logit > 0] their masks, learned together with λ as in AdaMerging by
    the gradient of sigmoid(logit/κ); other tensors have λ alone. Cost: T decompositions per matrix before; per
    step that of AdaMerging and O(Tpmn) per matrix for the gradients of the masks; task vectors and singular vectors in
    memory.
    """
    return _parametrisation(experts, h, experts.base, lambda vectors: vectors)


@method("adarank_cart", AdaRankCart, adaptive=True)
def adarank_cart(experts: Experts, h: AdaRankCart) -> Parametrisation:
    """As adarank_ta with the average θ̄ in place of θ0, for every tensor: task vectors θ_t - θ̄ sum to zero.

    Cost: as adarank_ta.
    """
    return _parametrisation(experts, h, experts.mean, lambda vectors: vectors)


@method("adarank_tsvm", AdaRankTsvM, adaptive=True)
def adarank_tsvm(experts: Experts, h: AdaRankTsvM) -> Parametrisation:
    """As adarank_ta with the leading ⌊ρr⌋ components of all tasks whitened together; the tensors without a mask
    start at θ0 plus the mean task vector.

    Cost: as adarank_ta, and two eigenproblems of side Tk per matrix before, k the number of leading components.
    """
    return _parametrisation(experts, h, experts.base, lambda vectors: vectors / len(experts), whiten=_whiten_leading)


def _parametrisation(
    experts: Experts, h: AdaRankTa, origin: Callable[[str], Tensor], unmasked: Callable[[Tensor], Tensor],
    *, whiten: Callable[[Tensor, Tensor, Tensor, int, str], None] | None = None,
) -> Parametrisation:
    from fusionbench_lite.adaptation.engine.parametrisation import Factors, Parametrisation, Part, Vectors

    ratio = h.rank_ratio if h.rank_ratio is not None else 1 / len(experts)
    parts: dict[str, Part] = {}
    masks: dict[str, Tensor] = {}
    for name in experts.names:
        start = origin(name)
        deltas = experts.stack(name).sub_(start)
        if not is_factorised(name, start.shape, h.matrices):
            parts[name] = Vectors(start, unmasked(deltas))
            continue
        left, values, right = _decompose(experts, name, deltas)
        rank = values.shape[1]
        active = rank_of(ratio, rank)
        if whiten is not None:
            whiten(left, values, right, active, name)
        if h.top_only:
            left, values, right = (tensor[:, :active].contiguous() for tensor in (left, values, right))
        exact = whiten is None and not h.top_only
        factors = Factors(
            start, left, values, right, active, temperature=h.temperature, deltas=deltas if exact else None,
            rank=rank, learn=h.learn != "coefficients",
        )
        if h.learn == "coefficients":
            parts[name], masks[name] = factors.frozen(), factors.mask()
        else:
            parts[name] = factors
    result = Parametrisation(experts, parts, h.scaling, lr=h.lr, masks=masks)
    result.coefficients.requires_grad_(h.learn != "masks")
    return result


def _decompose(experts: Experts, name: str, deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u as rows [T, r, m], s [T, r] descending and v as rows [T, r, n] of the matrices [T, m, n]."""

    def rows(number: int) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = decompose(deltas[number], f"{name!r} of expert {experts.tasks[number]!r}")
        return left.T.to(deltas.dtype), values.to(deltas.dtype), right.to(deltas.dtype)

    left, values, right = zip(*each(rows, range(len(experts))), strict=True)
    return torch.stack(left), torch.stack(values), torch.stack(right)


def _whiten_leading(left: Tensor, values: Tensor, right: Tensor, active: int, name: str) -> None:
    """Replace the leading components of all tasks by their polar factor, in place: rows u and v become orthonormal
    across tasks. Components that are numerically zero have arbitrary vectors and take no part, as in static TSV-M."""
    present = (values > NULL_RATIO**0.5 * values[:, :1])[:, :active, None]
    for rows, side in ((left, "left"), (right, "right")):
        rows[:, :active] *= present
        leading = rows[:, :active].reshape(-1, rows.shape[2]).double()
        if len(leading):
            root = inverse_root(leading @ leading.T, f"the {side} singular vectors of {name!r}")
            rows[:, :active] = (root @ leading).reshape(len(rows), active, -1).to(rows.dtype)
