"""Concrete subspace learning: a mask on the task vectors, shared by all tasks (Tang et al. 2023).

A mask is drawn anew in every step from learned logits, one per parameter. The merged model is made with a draw too, so
it depends on `seed`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, flag, integer, real
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.adaptation.engine.descent import Learner
    from fusionbench_lite.adaptation.engine.procedure import Context, Procedure
    from fusionbench_lite.adaptation.learners.concrete import Masked

LEVELS = ("layer", "task")
ORDERS = ("paper", "released")


@dataclasses.dataclass(frozen=True)
class ConcreteTa:
    """`scaling`: λ, the same for all tasks. `temperature`: κ of the relaxed masks. `lr`: Adam's learning rate of the
    logits. `seed`: of the draws."""

    scaling: float = real(0.3)
    temperature: float = real(0.5, low=0, open_low=True)
    lr: float = real(1e-3, low=0, open_low=True)
    seed: int = integer(0)


@dataclasses.dataclass(frozen=True)
class ConcreteAm:
    """`scaling`: λ at the start and after every mask step. `temperature`: κ of the relaxed masks. `level`: λ for every
    task and tensor (layer) or for every task. `clamp`: limit λ to [0, 1] in the merge, as the authors' code does and
    FusionBench does not. `mask_lr`: Adam's learning rate of the logits. `inner_lr`: that of the one step on λ before
    each mask step. `lr`: that of λ afterwards. `mask_steps`: how many steps learn masks, the others learn λ; None is two
    thirds. `order`: λ seen by the inner forward pass, `scaling` (paper) or what the step before had adapted (released).
    `seed`: of the draws."""

    scaling: float = real(0.3)
    temperature: float = real(0.5, low=0, open_low=True)
    level: str = choice("layer", LEVELS)
    clamp: bool = flag(True)
    mask_lr: float = real(1e-3, low=0, open_low=True)
    inner_lr: float = real(1.0, low=0, open_low=True)
    lr: float = real(1e-3, low=0, open_low=True)
    mask_steps: int | None = integer(None, low=0, optional=True)
    order: str = choice("paper", ORDERS)
    seed: int = integer(0)


def _learned_of_ta(of: Architecture, tasks: int, h: ConcreteTa) -> costs.Learned:
    return costs.Learned({"mask logits": of.parameters})


def _learned_of_am(of: Architecture, tasks: int, h: ConcreteAm) -> costs.Learned:
    return costs.Learned({"mask logits": of.parameters, "coefficients": tasks * (of.count if h.level == "layer" else 1)})


def _cost(s: costs.Setting, vectors: int) -> costs.Cost:
    """The mask, and so many vectors; the gradients of the logits take the memory of the weights'."""
    sizes = [math.prod(shape) * costs.WORK for shape in s.architecture.tensors.values()]
    tensors = (costs.Tensors(vectors=vectors * size, own=size, room=2 * size) for size in sizes)
    return costs.Cost(tuple(tensors), gradients=False)


def _cost_of_ta(s: costs.Setting) -> costs.Cost:
    """The sum of task vectors stays with the model."""
    return dataclasses.replace(_cost(s, 1), placeable=False)


def _cost_of_am(s: costs.Setting) -> costs.Cost:
    return _cost(s, s.tasks)


@method("concrete_ta", ConcreteTa, adaptive=True, label="Concrete TA", learned=_learned_of_ta, cost=_cost_of_ta, noisy=True)
def concrete_ta(experts: Experts, h: ConcreteTa) -> Learner:
    """θ_l = θ0_l + m̂_l ⊙ λ Σ_t τ_tl, m̂ = m / mean(m), m = σ((log u - log(1 - u) + x) / κ), u uniform in (0, 1).

    The logits x, one per parameter, minimise Σ_t of the mean entropy of task t's predictions on unlabelled batches; λ is
    constant. Cost: per step one forward and backward pass over a batch of every task, d random numbers, and O(d) for the
    merge, its gradient and Adam; memory for some eight models, however many tasks.
    """
    from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
    from fusionbench_lite.adaptation.learners.concrete import Concrete

    def weighted_sum(name: str) -> Tensor:
        pieces = ((part, block.sum(0).mul_(h.scaling)) for part, block in experts.blocks(name))
        return experts.filled(name, pieces).view(experts.shape(name))

    parts = {name: _masked(experts, name, weighted_sum(name), h) for name in experts.names}
    parametrisation = Parametrisation(experts, parts, h.scaling, lr=h.lr)
    return functools.partial(Concrete, parametrisation, initial=h.scaling, mask_lr=h.lr)


@method("concrete_am", ConcreteAm, adaptive=True, label="Concrete AM", learned=_learned_of_am, cost=_cost_of_am, noisy=True)
def concrete_am(experts: Experts, h: ConcreteAm) -> Learner:
    """θ_l = θ0_l + m̂_l ⊙ Σ_t λ_tl τ_tl with the masks of concrete_ta, then AdaMerging of λ behind them.

    A mask step takes one Adam step on λ from `scaling`, steps on the logits at the λ' that results, which counts as
    constant, and forgets λ'. The steps after the last mask step are those of AdaMerging with one mask drawn for good.
    Cost: a mask step takes two forward and backward passes, d random numbers, O(Td) for the merges and O(d) for Adam, a
    later step what AdaMerging takes; all task vectors and some seven models in memory.
    """
    from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
    from fusionbench_lite.adaptation.learners.concrete import Concrete

    parts = {name: _masked(experts, name, experts.task_vectors(name), h) for name in experts.names}
    shared = h.level == "task"
    parametrisation = Parametrisation(experts, parts, h.scaling, lr=h.lr, clamp=h.clamp, shared=shared)

    def learner(context: Context) -> Procedure:
        mask_steps = 2 * context.steps // 3 if h.mask_steps is None else h.mask_steps
        return Concrete(
            parametrisation, context, initial=h.scaling, mask_lr=h.mask_lr, inner_lr=h.inner_lr, mask_steps=mask_steps,
            released=h.order == "released",
        )

    return learner


def _masked(experts: Experts, name: str, vectors: Tensor, h: ConcreteTa | ConcreteAm) -> Masked:
    from fusionbench_lite.adaptation.learners.concrete import Masked

    return Masked(experts.base(name), vectors, h.temperature, (h.seed, "concrete", name))
