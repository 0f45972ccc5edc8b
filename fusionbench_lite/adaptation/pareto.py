"""Pareto Merging: one merged model for every preference among the tasks (Chen and Kwok 2025).

There is no public code, and the paper leaves open rank, matrices, optimiser and start: those here are our choices.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, flag, integer, real
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.matrices import MATRIX_POLICIES, is_factorised

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.descent import Learner
    from fusionbench_lite.adaptation.engine.parts import Part
    from fusionbench_lite.adaptation.learners.preferred import Preferred

MODES = ("entropy", "distance")
SCALARISATIONS = ("tchebycheff", "linear")
PREFERENCES = ("equal", "task")


@dataclasses.dataclass(frozen=True)
class Pareto:
    """`scaling`: the initial λ everywhere. `learn_coefficients`: learn λ per task and tensor too. `rank`: r of the
    low-rank updates. `mode`: objectives are entropies on unlabelled batches, or squared distances to the experts, which
    need no data. `scalarisation`: smooth Tchebycheff or linear. `mu`: μ of the former. `preference`: γ of the model that
    results, equal for all tasks or one model per task with γ = 1 for it. `matrices`: which tensors have updates.
    `lr`: Adam's learning rate. `seed`: of the start and of the preferences."""

    scaling: float = real(0.3)
    learn_coefficients: bool = flag(True)
    rank: int = integer(16, low=1)
    mode: str = choice("entropy", MODES)
    scalarisation: str = choice("tchebycheff", SCALARISATIONS)
    mu: float = real(0.1, low=0, open_low=True)
    preference: str = choice("equal", PREFERENCES)
    matrices: str = choice("attn_mlp", MATRIX_POLICIES)
    lr: float = real(1e-3, low=0, open_low=True)
    seed: int = integer(0)


def _learned(of: Architecture, tasks: int, h: Pareto) -> costs.Learned:
    low_rank = 0
    for shape in of.matrices(h.matrices).values():
        rank = min(h.rank, *shape)
        low_rank += rank * sum(shape) + tasks * rank**2
    coefficients = {"coefficients": tasks * of.count} if h.learn_coefficients else {}
    return costs.Learned({**coefficients, "low-rank tensors": low_rank}, low_rank, "and a preference over the tasks")


def _cost(s: costs.Setting) -> costs.Cost:
    return costs.Cost(tuple(costs.vectors(s)), forward=s.h.mode == "entropy")


@method(
    "pareto_merging", Pareto, adaptive=True, by_task=lambda h: h.preference == "task", label="Pareto Merging", learned=_learned,
    cost=_cost,
)
def pareto_merging(experts: Experts, h: Pareto) -> Learner:
    """W_l(γ) = θ0_l + Σ_t λ_tl τ_tl + A_l (Σ_t γ_t C_tl) B_lᵀ for matrices, without the update A C Bᵀ for the rest.

    In every step a preference γ is drawn uniformly from the simplex, and λ, A, B and C take an Adam step on
    μ log Σ_t exp(γ_t S_t / μ) or Σ_t γ_t S_t. S_t is the mean entropy of task t's predictions on an unlabelled batch, or
    the squared distance Σ_l ‖W_l(γ) - θ_tl‖². At the start C = 0: the model is that of task arithmetic. Cost: per step
    that of AdaMerging and O(rmn) per matrix, for distances O(Tmn) per matrix and no forward pass; all task vectors in
    memory.
    """
    from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
    from fusionbench_lite.adaptation.engine.parts import Vectors
    from fusionbench_lite.adaptation.learners.pareto import ParetoMerging

    parts: dict[str, Part] = {}
    for name in experts.names:
        if is_factorised(name, experts.shape(name), h.matrices):
            parts[name] = _preferred(experts, name, h)
        else:
            parts[name] = Vectors(experts.base(name), experts.task_vectors(name))
    parametrisation = Parametrisation(experts, parts, h.scaling, lr=h.lr)
    parametrisation.coefficients.requires_grad_(h.learn_coefficients)
    return functools.partial(
        ParetoMerging, parametrisation, mode=h.mode, scalarisation=h.scalarisation, mu=h.mu,
        per_task=h.preference == "task", seed=h.seed,
    )


def _preferred(experts: Experts, name: str, h: Pareto) -> Preferred:
    from fusionbench_lite.adaptation.draws import normal
    from fusionbench_lite.adaptation.learners.preferred import Preferred

    sides = experts.shape(name)
    rank = min(h.rank, *sides)
    left, right = (
        normal((side, rank), h.seed, "pareto_merging", name, word).double() / side**0.5
        for side, word in zip(sides, ("left", "right"), strict=True)
    )
    return Preferred(experts.base(name), experts.task_vectors(name), left, right)
