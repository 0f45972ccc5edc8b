"""AdaMerging on the low-rank updates of TSV-M, CART and Iso-CTS, the baselines of AdaRank (Lee et al. 2025).

The updates are constant: AdaRank with the masks of its start and learned coefficients alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.isotropic import STABLE, directions
from fusionbench_lite.methods.tsv import side_by_side
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import orthonormalise_, product, rank_of, top_singular
from fusionbench_lite.weights.matrices import MATRIX_POLICIES, is_factorised
from fusionbench_lite.weights.parallel import each
from fusionbench_lite.weights.ranks import Ranks

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.adaptation.engine.descent import Learner
    from fusionbench_lite.adaptation.engine.parts import Part


@dataclasses.dataclass(frozen=True)
class AdaMergingTsvM:
    """`scaling`: the initial λ everywhere. `rank_ratio`: ρ, the part of the singular components each task keeps; None is
    1/T. `lr`: Adam's learning rate. `matrices`: which tensors are factorised."""

    scaling: float = real(1.0)
    rank_ratio: float | None = real(None, low=0, high=1, open_low=True, optional=True)
    lr: float = real(1e-3, low=0, open_low=True)
    matrices: str = choice("attn_mlp", MATRIX_POLICIES)


@dataclasses.dataclass(frozen=True)
class AdaMergingCart(AdaMergingTsvM):
    """As AdaMergingTsvM; the defaults are those of ViT-B/32 with 8 tasks."""

    scaling: float = real(2.3)
    rank_ratio: float | None = real(0.16, low=0, high=1, open_low=True)


@dataclasses.dataclass(frozen=True)
class AdaMergingIsoCts:
    """`scaling`: the initial λ everywhere. `common_fraction`: f, the part of the directions that the sum of the task
    vectors keeps; the tasks share the rest. `lr`: Adam's learning rate. `matrices`: which tensors are made isotropic."""

    scaling: float = real(1.0)
    common_fraction: float = real(0.8, low=0, high=1)
    lr: float = real(1e-3, low=0, open_low=True)
    matrices: str = choice("attn_mlp", MATRIX_POLICIES)


def _low_rank(s: costs.Setting, ratio: float | None, *, common: int = 0) -> Iterator[costs.Tensors]:
    """Constant dense updates, of which factorised matrices have `common` more than there are tasks."""
    chosen = s.architecture.matrices(s.h.matrices)
    for name, shape in s.architecture.tensors.items():
        tensors = costs.task_vectors(s, shape, s.tasks + (common if name in chosen else 0))
        if name in chosen:
            size, rank = math.prod(shape), max(1, int((1 / s.tasks if ratio is None else ratio) * min(shape)))
            # Whitened or shared directions: all tasks' factors side by side in float64, and their Gram matrices.
            factors = 8 * s.tasks * rank * sum(shape) + 40 * min(s.tasks * rank, min(shape)) ** 2
            room = max(costs.decomposition_room(shape, s.at_once), factors)
            setup = s.tasks * (costs.decomposition_flops(shape) + 2 * rank * size)
            # With all components of every task nothing is decomposed, but where directions are shared.
            tensors = dataclasses.replace(tensors, room=room if ratio != 1 or common else tensors.room, setup=setup)
        yield tensors


def _cost(s: costs.Setting) -> costs.Cost:
    return costs.Cost(tuple(_low_rank(s, s.h.rank_ratio)))


def _cost_of_cart(s: costs.Setting) -> costs.Cost:
    return dataclasses.replace(_cost(s), new_origin=True)


def _cost_of_iso_cts(s: costs.Setting) -> costs.Cost:
    return costs.Cost(tuple(_low_rank(s, 1.0, common=1)))


def _learned_of_iso_cts(of: Architecture, tasks: int, h: AdaMergingIsoCts) -> costs.Learned:
    matrices = of.matrices(h.matrices)
    return costs.Learned({"coefficients": tasks * of.count, "coefficients of common blocks": len(matrices)})


@method(
    "adamerging_tsvm", AdaMergingTsvM, adaptive=True, label="AdaMerging (TSV-M)", learned=costs.coefficients, cost=_cost,
)
def adamerging_tsvm(experts: Experts, h: AdaMergingTsvM) -> Learner:
    """θ_l = θ0_l + Σ_t λ_tl Ũ_tl diag(s_tl) Ṽ_tlᵀ for matrices, θ0_l + Σ_t λ_tl τ_tl / T for the rest.

    Ũ, s and Ṽ are the whitened leading components of TSV-M, λ is learned as in adamerging_layerwise without its clamp.
    Cost: T eigenproblems of side p and two of side Tk per matrix before; per step that of adamerging_layerwise.
    """
    from fusionbench_lite.adaptation.engine.parts import Vectors

    ratio = _ratio(experts, h)
    ranks = Ranks("adamerging_tsvm")
    parts: dict[str, Part] = {}
    for name in experts.names:
        shape = experts.shape(name)
        if is_factorised(name, shape, h.matrices):
            vectors = _whitened(experts, name, rank_of(ratio, min(shape)), ranks)
        else:
            vectors = experts.task_vectors(name).div_(len(experts))
        parts[name] = Vectors(experts.base(name), vectors)
    ranks.warn()
    return _learner(experts, parts, h)


@method(
    "adamerging_cart", AdaMergingCart, adaptive=True, label="AdaMerging (CART)", learned=costs.coefficients, cost=_cost_of_cart,
)
def adamerging_cart(experts: Experts, h: AdaMergingCart) -> Learner:
    """θ_l = θ̄_l + Σ_t λ_tl SVD_k(θ_tl - θ̄_l) for matrices, with all components for the rest.

    k = ⌊ρp⌋; λ is learned as in adamerging_layerwise without its clamp. Cost: T eigenproblems of side p per matrix
    before; per step that of adamerging_layerwise.
    """
    from fusionbench_lite.adaptation.engine.parts import Vectors

    ratio = _ratio(experts, h)
    ranks = Ranks("adamerging_cart")
    parts: dict[str, Part] = {}
    for name in experts.names:
        mean, shape = experts.mean(name), experts.shape(name)
        vectors = experts.stack(name).sub_(mean)
        if is_factorised(name, shape, h.matrices) and ratio < 1:
            truncate = functools.partial(_truncate, experts, name, vectors, rank_of(ratio, min(shape)), ranks)
            each(truncate, range(len(experts)))
        parts[name] = Vectors(mean, vectors)
    ranks.warn()
    return _learner(experts, parts, h)


@method(
    "adamerging_iso_cts", AdaMergingIsoCts, adaptive=True, label="AdaMerging (Iso-CTS)",
    learned=_learned_of_iso_cts, cost=_cost_of_iso_cts,
)
def adamerging_iso_cts(experts: Experts, h: AdaMergingIsoCts) -> Learner:
    """θ_l = θ0_l + σ̄_l (λ_0l U_0l V_0lᵀ + Σ_t λ_tl U_tl V_tlᵀ) for matrices, θ0_l + Σ_t λ_tl τ_tl / T for the rest.

    U, V and σ̄ are those of Iso-CTS: a block of common directions, which belongs to no task and has its own λ, and one
    block per task. The paper tunes λ at this start and does not say how it is learned (docs/decisions.md, D6). λ
    is learned as in adamerging_layerwise without its clamp. Cost: 3 + T eigenproblems of side p per matrix before; per
    step that of adamerging_layerwise with one task vector more.
    """
    from fusionbench_lite.adaptation.engine.parts import TasksAlone, Vectors

    ranks = Ranks("adamerging_iso_cts", STABLE)
    parts: dict[str, Part] = {}
    for name in experts.names:
        base = experts.base(name)
        if not is_factorised(name, base.shape, h.matrices):
            parts[name] = TasksAlone(Vectors(base, experts.task_vectors(name).div_(len(experts))))
            continue
        (left, values, right), sizes = directions(experts, name, h.common_fraction, ranks)
        parts[name] = Vectors(base, _products(left.mul_(values.mean()), right, sizes, base.dtype))
    return _learner(experts, parts, h, common=True)


def _learner(
    experts: Experts, parts: dict[str, Part], h: AdaMergingTsvM | AdaMergingIsoCts, *, common: bool = False
) -> Learner:
    from fusionbench_lite.adaptation.engine.descent import descend
    from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation

    return descend(Parametrisation(experts, parts, h.scaling, lr=h.lr, common=common))


def _ratio(experts: Experts, h: AdaMergingTsvM) -> float:
    return h.rank_ratio if h.rank_ratio is not None else 1 / len(experts)


def _whitened(experts: Experts, name: str, wanted: int, ranks: Ranks) -> Tensor:
    """Return Ũ_t diag(s_t) Ṽ_tᵀ of every task, [T, m, n] in the work dtype; zeros where no component is wanted."""
    dtype = experts.work_dtype(name)
    if not wanted:
        return torch.zeros_like(experts.base(name)).expand(len(experts), -1, -1)
    left, values, right = side_by_side(experts, name, wanted, "fixed", ranks)
    orthonormalise_(left, right, repr(name), dtype)
    return _products(left.mul_(values), right, [wanted] * len(experts), dtype)


def _products(left: Tensor, right: Tensor, sizes: list[int], dtype: torch.dtype) -> Tensor:
    """Return L_i R_i [blocks, m, n] for blocks of these sizes of the columns of L [m, K] and the rows of R [K, n]."""
    result = torch.empty((len(sizes), len(left), right.shape[1]), dtype=dtype, device=left.device)
    for target, mine, other in zip(result, torch.split(left, sizes, 1), torch.split(right, sizes), strict=True):
        target.copy_(product(mine, other, dtype))
    return result


def _truncate(experts: Experts, name: str, vectors: Tensor, rank: int, ranks: Ranks, number: int) -> None:
    """Replace one of the matrices [T, m, n] by its `rank` leading singular components."""
    what = f"{name!r} of expert {experts.tasks[number]!r}"
    left, values, right = top_singular(vectors[number], rank, what, ranks.cut(what, rank, sum(vectors.shape[1:])))
    vectors[number] = product(left.mul_(values), right, vectors.dtype)
