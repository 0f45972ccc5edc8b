"""AdaRank: learned masks on the singular components of the task vectors (Lee et al. 2025).

Released code exists for the TA and CART starts. In the TSV-M start the leading components are whitened as in static TSV-M, and
the others are held raw with their mask off; with `extra="none"` they are not there (docs/decisions.md, D5).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, flag, real
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture, Shape
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import rank_of
from fusionbench_lite.weights.matrices import MATRIX_POLICIES, is_factorised
from fusionbench_lite.weights.ranks import Ranks

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.adaptation.engine.descent import Learner

LEARN = ("both", "coefficients", "masks")
OBJECTIVES = ("entropy", "cross_entropy")
EXTRA = ("raw", "none")

NOISE = "of the merged weights by no more than that noise, but masks of such components say nothing"


@dataclasses.dataclass(frozen=True)
class AdaRankTa:
    """`scaling`: initial λ of every task and tensor. `rank_ratio`: ρ, the part of the components that start active.
    `temperature`: κ of the mask. `lr`: Adam's learning rate for λ and mask logits. `learn`: what is learned, the rest
    keeps its start. `top_only`: only the initially active components exist. `matrices`: which tensors carry masks.
    `objective`: "cross_entropy" is the supervised oracle, which reads labels."""

    scaling: float = real(0.3)
    rank_ratio: float | None = real(1.0, low=0, high=1, open_low=True)
    temperature: float = real(10.0, low=0, open_low=True)
    lr: float = real(1e-3, low=0, open_low=True)
    learn: str = choice("both", LEARN)
    top_only: bool = flag(False)
    matrices: str = choice("attn_mlp", MATRIX_POLICIES)
    objective: str = choice("entropy", OBJECTIVES)


@dataclasses.dataclass(frozen=True)
class AdaRankCart(AdaRankTa):
    """As AdaRankTa, around the average of the experts; defaults are those of ViT-B/32 with 8 tasks."""

    scaling: float = real(2.3)
    rank_ratio: float | None = real(0.16, low=0, high=1, open_low=True)


@dataclasses.dataclass(frozen=True)
class AdaRankTsvM(AdaRankTa):
    """As AdaRankTa, from TSV-M. `rank_ratio`: ρ, the part of the components that start active; None is 1/T. `extra`:
    whether the components beyond the whitened ones are held raw, with their mask off, or are not there ("none")."""

    scaling: float = real(1.0)
    rank_ratio: float | None = real(None, low=0, high=1, open_low=True, optional=True)
    extra: str = choice("raw", EXTRA)


def _held(h: AdaRankTa, tasks: int, shape: Shape) -> int:
    """Return how many components of a task's matrix there are, active at the start or not."""
    if not h.top_only and getattr(h, "extra", "raw") == "raw":
        return min(shape)
    return max(1, int((1 / tasks if h.rank_ratio is None else h.rank_ratio) * min(shape)))


def _learned(of: Architecture, tasks: int, h: AdaRankTa) -> costs.Learned:
    """λ of every task and tensor, and a bit per singular component of every task and masked matrix (AdaRank, Eq. 5)."""
    matrices = of.matrices(h.matrices).values()
    counts = chosen(h, {"coefficients": tasks * of.count}, tasks * sum(_held(h, tasks, shape) for shape in matrices))
    return costs.Learned(counts, parts={"unused scalars of the released code": of.count - len(matrices)})


def chosen(h: AdaRankTa, coefficients: Mapping[str, int], logits: int) -> dict[str, int]:
    """Return what is learned of these coefficients and so many mask logits."""
    return (dict(coefficients) if h.learn != "masks" else {}) | ({"mask logits": logits} if h.learn != "coefficients" else {})


def _tensors(s: costs.Setting, *, whiten: bool) -> Iterator[costs.Tensors]:
    """The components of all tasks, and the sums of those active at the start where memory allows."""
    masked, whole = s.architecture.matrices(s.h.matrices), not s.h.top_only and getattr(s.h, "extra", "raw") == "raw"
    for name, shape in s.architecture.tensors.items():
        if name not in masked:
            yield costs.task_vectors(s, shape)
            continue
        size, rank, held = math.prod(shape), min(shape), _held(s.h, s.tasks, shape)
        every, kept = (s.tasks * count * (sum(shape) + 1) * costs.WORK for count in (rank, held))
        dense, room = s.tasks * size * costs.WORK, costs.decomposition_room(shape, s.at_once)
        setup, exact = s.tasks * (costs.decomposition_flops(shape) + 2 * held * size), whole and not whiten
        if s.h.learn == "coefficients":
            yield costs.Tensors(vectors=dense, room=room + every + (0 if exact else dense), setup=setup)
            continue
        beside = 0 if s.keep and exact else dense  # the task vectors, where the sums are others
        room = max(room + beside, beside + (0 if whole else every))
        if whiten:
            active = s.tasks * max(1, int((1 / s.tasks if s.h.rank_ratio is None else s.h.rank_ratio) * rank))
            room = max(room, dense + 8 * (2 * active * max(shape) + 4 * active**2))
        yield costs.Tensors(
            sums=dense if s.keep else 0, components=kept, room=room, setup=setup, step=s.tasks * products(shape),
        )


def products(shape: Shape) -> int:
    """Return the operations of a step's way back: the components of a matrix, of one task, meet the gradient."""
    return 2 * min(shape) * (math.prod(shape) + max(shape))


def _cost(s: costs.Setting) -> costs.Cost:
    return costs.Cost(tuple(_tensors(s, whiten=False)))


def _cost_of_cart(s: costs.Setting) -> costs.Cost:
    return dataclasses.replace(_cost(s), new_origin=True)


def _cost_of_tsvm(s: costs.Setting) -> costs.Cost:
    return costs.Cost(tuple(_tensors(s, whiten=True)))


@method("adarank_ta", AdaRankTa, adaptive=True, label="AdaRank (TA)", learned=_learned, cost=_cost)
def adarank_ta(experts: Experts, h: AdaRankTa) -> Learner:
    """θ_l = θ0_l + Σ_t λ_tl U_tl diag(b_tl ⊙ s_tl) V_tlᵀ from the task vectors θ_t - θ0 (AdaRank, Eq. 5).

    U diag(s) Vᵀ are the decomposed matrices, b = 1[logit > 0] their masks, learned together with λ as in AdaMerging by
    the gradient of sigmoid(logit/κ); other tensors have λ alone. Cost: T decompositions per matrix before; per
    step that of AdaMerging and O(Tpmn) per matrix for the gradients of the masks; task vectors and singular vectors in
    memory.
    """
    return _learner(experts, h, experts.base, Ranks("adarank_ta", NOISE))


@method("adarank_cart", AdaRankCart, adaptive=True, label="AdaRank (CART)", learned=_learned, cost=_cost_of_cart)
def adarank_cart(experts: Experts, h: AdaRankCart) -> Learner:
    """As adarank_ta with the average θ̄ in place of θ0, for every tensor: task vectors θ_t - θ̄ sum to zero.

    Cost: as adarank_ta.
    """
    return _learner(experts, h, experts.mean, Ranks("adarank_cart", NOISE))


@method("adarank_tsvm", AdaRankTsvM, adaptive=True, label="AdaRank (TSV-M)", learned=_learned, cost=_cost_of_tsvm)
def adarank_tsvm(experts: Experts, h: AdaRankTsvM) -> Learner:
    """As adarank_ta with the leading ⌊ρr⌋ components of all tasks whitened together; the tensors without a mask
    start at θ0 plus the mean task vector.

    Cost: as adarank_ta, and two eigenproblems of side Tk per matrix before, k the number of leading components.
    """
    return _learner(
        experts, h, experts.base, Ranks("adarank_tsvm", 'tsv_m with rank="numerical" is stable'), whiten=True, extra=h.extra
    )


def _learner(
    experts: Experts, h: AdaRankTa, origin: Callable[[str], Tensor], ranks: Ranks, *, whiten: bool = False, extra: str = "raw"
) -> Learner:
    from fusionbench_lite.adaptation.engine.parts import Part, Vectors
    from fusionbench_lite.adaptation.learners.component_masks import Masks, decomposed, whiten_leading

    ratio = h.rank_ratio if h.rank_ratio is not None else 1 / len(experts)
    masks = Masks(experts, h.learn, h.temperature)
    parts: dict[str, Part] = {}
    for name in experts.names:
        start = origin(name)
        deltas = experts.stack(name).sub_(start)
        if not is_factorised(name, start.shape, h.matrices):
            parts[name] = Vectors(start, deltas.div_(len(experts)) if whiten else deltas)
            continue
        rank = min(start.shape)
        active = rank_of(ratio, rank)
        used = active if whiten or h.top_only or h.learn == "coefficients" else rank
        components = decomposed(experts, name, deltas, active, used, ranks, learned=h.learn != "coefficients")
        if whiten:
            whiten_leading(components, active, name)
        if h.top_only or extra == "none":
            components = components.leading(active)
        exact = not whiten and not h.top_only
        parts[name] = masks.part(
            name, start, components, active, rank=active if extra == "none" else rank, deltas=deltas if exact else None
        )
    ranks.warn()
    return masks.learner(experts, parts, h.scaling, lr=h.lr, objective=h.objective)
