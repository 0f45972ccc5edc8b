"""AdaRank on the directions of Iso-CTS (Lee et al. 2025): no code or definition was published; docs/decisions.md, D6."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.adaptation.adarank import AdaRankTa, chosen, products
from fusionbench_lite.fields import real
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.isotropic import STABLE, directions, shares
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import rank_of
from fusionbench_lite.weights.matrices import is_factorised
from fusionbench_lite.weights.ranks import Ranks

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.adaptation.engine.descent import Learner
    from fusionbench_lite.adaptation.engine.parts import Part
    from fusionbench_lite.adaptation.learners.component_masks import Components, Masks


@dataclasses.dataclass(frozen=True)
class AdaRankIsoCts(AdaRankTa):
    """As AdaRankTa, from Iso-CTS. `rank_ratio`: ρ, the part of the directions of each block that start active.
    `common_fraction`: f, the part of the directions that the sum of the task vectors keeps; the tasks share the rest."""

    scaling: float = real(1.0)
    common_fraction: float = real(0.8, low=0, high=1)


def _learned(of: Architecture, tasks: int, h: AdaRankIsoCts) -> costs.Learned:
    """λ of every task and tensor and of the common blocks, and a bit per direction of every block."""
    matrices, logits = of.matrices(h.matrices).values(), 0
    for shape in matrices:
        blocks = shares(min(shape), tasks, h.common_fraction)
        common, per_task = (rank_of(h.rank_ratio or 1.0, block) for block in blocks) if h.top_only else blocks
        logits += common + tasks * per_task
    coefficients = {"coefficients": tasks * of.count, "coefficients of common blocks": len(matrices)}
    return costs.Learned(chosen(h, coefficients, logits))


def _tensors(s: costs.Setting) -> Iterator[costs.Tensors]:
    """As many directions as a matrix has, shared out among a common block and the tasks."""
    masked = s.architecture.matrices(s.h.matrices)
    for name, shape in s.architecture.tensors.items():
        if name not in masked:
            yield costs.task_vectors(s, shape)
            continue
        size, rank = math.prod(shape), min(shape)
        yield costs.Tensors(
            sums=(1 + s.tasks) * size * costs.WORK if s.keep else 0, components=rank * (sum(shape) + 1) * costs.WORK,
            room=8 * (4 * size + 4 * rank**2) + costs.decomposition_room(shape, s.at_once),
            setup=(3 + s.tasks) * costs.decomposition_flops(shape),
            step=0 if s.h.learn == "coefficients" else products(shape),
        )


def _cost(s: costs.Setting) -> costs.Cost:
    return costs.Cost(tuple(_tensors(s)))


@method("adarank_iso_cts", AdaRankIsoCts, adaptive=True, label="AdaRank (Iso-CTS)", learned=_learned, cost=_cost)
def adarank_iso_cts(experts: Experts, h: AdaRankIsoCts) -> Learner:
    """θ_l = θ0_l + σ̄_l Σ_{t=0..T} λ_tl U_tl diag(b_tl) V_tlᵀ for matrices, θ0_l + Σ_t λ_tl τ_tl / T for the rest.

    U, V and σ̄ are those of Iso-CTS; block 0 holds the directions common to all tasks, with a λ and a mask of its own.
    Masks b and λ are learned as in adarank_ta. Cost: 3 + T eigenproblems of side p per matrix before; per step that of
    AdaMerging and O(pmn) per matrix, p the directions of all blocks together; one task vector more in memory.
    """
    from fusionbench_lite.adaptation.engine.parts import TasksAlone, Vectors
    from fusionbench_lite.adaptation.learners.component_masks import Masks

    masks, ranks = Masks(experts, h.learn, h.temperature), Ranks("adarank_iso_cts", STABLE)
    factorised = [name for name in experts.names if is_factorised(name, experts.shape(name), h.matrices)]
    largest = max((experts.numel(name) for name in factorised), default=0)
    zeros: dict[torch.dtype, Tensor] = {}
    parts: dict[str, Part] = {}
    for name in experts.names:
        base = experts.base(name)
        if name not in factorised:
            parts[name] = TasksAlone(Vectors(base, experts.task_vectors(name).div_(len(experts))))
            continue
        # Blocks of the tasks are added to nothing: one tensor of zeros serves all matrices.
        nothing = zeros.setdefault(base.dtype, base.new_zeros(largest))[: base.numel()].view_as(base)
        parts[name] = _part(experts, name, h, masks, ranks, base, nothing)
    ranks.warn()
    return masks.learner(experts, parts, h.scaling, lr=h.lr, objective=h.objective, common=True)


def _part(experts: Experts, name: str, h: AdaRankIsoCts, masks: Masks, ranks: Ranks, base: Tensor, nothing: Tensor) -> Part:
    from fusionbench_lite.adaptation.engine.parts import Sum

    (left, values, right), sizes = directions(experts, name, h.common_fraction, ranks)
    blocks = []
    common, of_tasks = ("/common", base, 0, sizes[0], 1), ("", nothing, sizes[0], sizes[1], len(experts))
    for label, origin, first, size, count in (common, of_tasks):
        place, active = slice(first, first + size * count), rank_of(h.rank_ratio or 1.0, size)
        components = _components(left[:, place], right[place], float(values.mean()), count, base.dtype)
        held = components.leading(active) if h.top_only else components
        blocks.append(masks.part(name + label, origin, held, active, rank=size))
    return Sum(*blocks)


def _components(left: Tensor, right: Tensor, value: float, count: int, dtype: torch.dtype) -> Components:
    """Return directions [m, count·r] and [count·r, n] as the components of `count` blocks, all of one singular value."""
    from fusionbench_lite.adaptation.learners.component_masks import Components

    shape = count, len(right) // count
    return Components(
        left.T.to(dtype).reshape(*shape, len(left)).contiguous(), torch.full(shape, value, dtype=dtype, device=left.device),
        right.to(dtype).reshape(*shape, right.shape[1]),  # [count, r, n]
    )
