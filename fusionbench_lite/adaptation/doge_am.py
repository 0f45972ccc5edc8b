"""doGe AM: AdaMerging on the task vectors that doGe has modified (Wei et al. 2025).

The definition is that of the released code; the paper has one modification for all tasks and a smaller shared space.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError
from fusionbench_lite.fields import choice, flag, integer, real
from fusionbench_lite.methods.doge import DogeTa, Modified, nothing_selected
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.matrices import MATRIX_POLICIES, is_factorised
from fusionbench_lite.weights.ranks import RANKS, Ranks

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.descent import Learner

DELTAS = ("shared", "per_task")

ROWS = 4
"""Products of a task vector's size in a step of the modification: two of T and two of k directions."""


@dataclasses.dataclass(frozen=True)
class DogeAm:
    """The settings of doGe's modifications and of AdaMerging.

    `eta`: η, the norm of every scaled task vector of a matrix; 0.07 for CLIP, 0.15 for Flan-T5. `keep`: part of each
    task vector that is trimmed to, over all matrices. `delta_steps`, `delta_lr`: of Adam on Δ; 0 steps are "no
    optimisation". `subspace_divisor`: the shared space has ⌊p / divisor⌋ directions; null is T, the released code, and
    the paper says 6. `deltas`: one Δ for all tasks, or one for each as in the released code, which differ only where
    gradients are as small as Adam's ε. `matrices`: which tensors are merged at all. `rank`: "numerical" takes no singular
    vectors beyond a task vector's numerical rank, which "fixed" fills with noise. `scaling`: the initial λ everywhere.
    `clamp`: limit λ to [0, 1] in the merge. `lr`: Adam's learning rate for λ.
    """

    eta: float = real(0.07, low=0, open_low=True)
    keep: float = real(0.3, low=0, high=1, open_low=True)
    delta_steps: int = integer(400, low=0)
    delta_lr: float = real(1e-4, low=0, open_low=True)
    subspace_divisor: int | None = integer(None, low=1, optional=True)
    deltas: str = choice("shared", DELTAS)
    matrices: str = choice("encoder_linear", MATRIX_POLICIES)
    rank: str = choice("fixed", RANKS)
    scaling: float = real(0.3)
    clamp: bool = flag(False)
    lr: float = real(1e-3, low=0, open_low=True)


def _learned(of: Architecture, tasks: int, h: DogeAm) -> costs.Learned:
    """The modification before the steps, λ in them."""
    matrices = of.matrices(h.matrices).values()
    shared = sum(map(math.prod, matrices))
    what, number = ("shared vector", shared) if h.deltas == "shared" else ("vectors of the tasks", tasks * shared)
    note = f"one vector per task as in the released code: {tasks * shared:,}" if h.deltas == "shared" else ""
    return costs.Learned({what: number, "coefficients": tasks * len(matrices)}, note=note, before=frozenset({what}))


def _tensors(s: costs.Setting) -> Iterator[costs.Tensors]:
    """Only selected matrices are merged; while one is modified, Adam's state and another order of its vectors are there."""
    divisor = s.h.subspace_divisor or s.tasks
    for shape in s.architecture.matrices(s.h.matrices).values():
        size, rank = math.prod(shape), min(shape)
        vectors = s.tasks * size * costs.WORK
        space, joint = 8 * shape[0] * (rank // divisor), 8 * (2 * shape[0] * rank + 4 * rank**2)
        deltas = vectors if s.h.deltas == "per_task" else 0
        descent = deltas + 5 * size * costs.WORK + space + vectors  # beside the vectors, which are worked on
        # The vectors come out in another order, in memory of their own: both are there for a moment.
        room = max(joint + costs.decomposition_room(shape, s.at_once), descent, vectors)
        descent_flops = s.h.delta_steps * ROWS * (s.tasks + rank // divisor) * size
        setup = s.tasks * costs.decomposition_flops(shape) + descent_flops
        yield costs.Tensors(vectors=vectors, room=room, setup=setup)


def _cost(s: costs.Setting) -> costs.Cost:
    return costs.Cost(tuple(_tensors(s)))


@method("doge_am", DogeAm, adaptive=True, label="doGe AM", learned=_learned, cost=_cost)
def doge_am(experts: Experts, h: DogeAm) -> Learner:
    """θ_l = θ0_l + Σ_t λ_tl M_tl ⊙ (τ_tl + Δ_l) for the selected matrices, θ0 else.

    Δ and M are those of doge_ta, without its scaling of the task vectors; λ is learned as in adamerging_layerwise. Cost:
    before, 4(T + k)mn operations per step of Δ and matrix; per step of λ that of adamerging_layerwise.
    """
    from fusionbench_lite.adaptation.engine.descent import descend
    from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
    from fusionbench_lite.adaptation.engine.parts import Part, Vectors

    selected = [name for name in experts.names if is_factorised(name, experts.shape(name), h.matrices)]
    if not selected:
        raise MergeError(nothing_selected("doge_am", experts, h.matrices))
    ranks = Ranks("doge_am")
    modified = Modified(experts, selected, _settings(experts, h), ranks, per_task=h.deltas == "per_task")
    parts: dict[str, Part] = {
        name: Vectors(experts.base(name), modified.vectors(name).transpose(0, 1).contiguous()) for name in selected  # [T, m, n]
    }
    ranks.warn()
    return descend(Parametrisation(experts, parts, h.scaling, lr=h.lr, clamp=h.clamp))


def _settings(experts: Experts, h: DogeAm) -> DogeTa:
    return DogeTa(
        eta=h.eta, keep=h.keep, steps=h.delta_steps, lr=h.delta_lr, matrices=h.matrices, rank=h.rank,
        subspace_divisor=len(experts) if h.subspace_divisor is None else h.subspace_divisor,
    )
