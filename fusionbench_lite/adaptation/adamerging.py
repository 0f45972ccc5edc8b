"""AdaMerging: merging coefficients learned by entropy minimisation (Yang et al. 2024)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, flag, real
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.descent import Learner
    from fusionbench_lite.adaptation.engine.parts import Vectors

OBJECTIVES = ("entropy", "entropy_of_mean")


@dataclasses.dataclass(frozen=True)
class AdaMerging:
    """`scaling`: the initial λ everywhere. `clamp`: limit λ to [0, 1] in the merge, as the authors' code does and
    FusionBench does not. `lr`: Adam's learning rate."""

    scaling: float = real(0.3)
    clamp: bool = flag(True)
    lr: float = real(1e-3, low=0, open_low=True)


@dataclasses.dataclass(frozen=True)
class AdaMergingEntropy(AdaMerging):
    """As AdaMerging. `objective`: "entropy" of each prediction, or "entropy_of_mean", that of the mean logits of a task's
    batch, as FusionBench has it for GPT-2 and Flan-T5."""

    objective: str = choice("entropy", OBJECTIVES)


@method(
    "adamerging_taskwise", AdaMergingEntropy, adaptive=True, label="AdaMerging (task-wise)",
    learned=costs.task_coefficients, cost=costs.descent_on_vectors,
)
def adamerging_taskwise(experts: Experts, h: AdaMergingEntropy) -> Learner:
    """One λ per task: θ_l = θ0_l + Σ_t clamp(λ_t, 0, 1) τ_tl (AdaMerging, Section 3.2).

    λ minimises Σ_t of the mean entropy of task t's predictions on unlabelled batches. Cost: as adamerging_layerwise.
    """
    return _learner(experts, h, shared=True)


@method(
    "adamerging_layerwise", AdaMergingEntropy, adaptive=True, label="AdaMerging (layer-wise)",
    learned=costs.coefficients, cost=costs.descent_on_vectors,
)
def adamerging_layerwise(experts: Experts, h: AdaMergingEntropy) -> Learner:
    """One λ per task and tensor: θ_l = θ0_l + Σ_t clamp(λ_tl, 0, 1) τ_tl (AdaMerging, Section 3.2).

    λ minimises Σ_t of the mean entropy of task t's predictions on unlabelled batches. A "layer" of the paper is one
    tensor of the state dict, biases and norms included. Cost: per step one forward and backward pass over a batch of
    every task, and O(Td) for the merge and its gradient; all task vectors in memory.
    """
    return _learner(experts, h, shared=False)


def _learner(experts: Experts, h: AdaMergingEntropy, *, shared: bool) -> Learner:
    from fusionbench_lite.adaptation.engine.descent import descend
    from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation

    vectors = {name: task_vectors(experts, name) for name in experts.names}
    result = Parametrisation(experts, vectors, h.scaling, lr=h.lr, clamp=h.clamp, shared=shared)
    return descend(result, h.objective)


def task_vectors(experts: Experts, name: str) -> Vectors:
    """Return θ0 and the task vectors of one tensor."""
    from fusionbench_lite.adaptation.engine.parts import Vectors

    return Vectors(experts.base(name), experts.task_vectors(name))
