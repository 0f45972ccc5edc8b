"""ProbSurgery: representation surgery whose adapters remove a random amount while they learn (Wei et al. 2025)."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from fusionbench_lite.adaptation.base import base_weights
from fusionbench_lite.fields import flag, integer, real, word
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.descent import Learner


@dataclasses.dataclass(frozen=True)
class ProbSurgery:
    """`base`: the method whose merged model the adapters sit on. `hidden`: width of an adapter inside. `lr`: Adam's
    learning rate. `kl`: weight of the Kullback-Leibler divergence. `shared`: one adapter for all tasks, updated by
    their batches in turn. `seed`: of the initial weights and the noise."""

    base: str = word("task_arithmetic")
    hidden: int = integer(128, low=1)
    lr: float = real(1e-3, low=0, open_low=True)
    kl: float = real(1e-4, low=0)
    shared: bool = flag(False)
    seed: int = integer(0)


def _learned(of: Architecture, tasks: int, h: ProbSurgery) -> costs.Learned:
    """Down projection, mean head and variance head, of which evaluation needs the first two."""
    per_task, kept, count = 3 * of.output * h.hidden, 2 * of.output * h.hidden, 1 if h.shared else tasks
    note = f"{per_task:,} {'for all tasks' if h.shared else 'per task'}, of which evaluation needs {kept:,}"
    note += ": down projection and mean head"
    return costs.Learned({"adapters": count * per_task}, count * kept, note, task_id=True, parts={"per task": per_task})


def _cost(s: costs.Setting) -> costs.Cost:
    return costs.Cost(kind="features", merges=False)


@method("prob_surgery", ProbSurgery, adaptive=True, inputs=("merged",), label="ProbSurgery", learned=_learned, cost=_cost)
def prob_surgery(experts: Experts, h: ProbSurgery, merged: Any = None) -> Learner:
    """Features z(θ_base) - μ_t with μ_t = M_t relu(D_t z(θ_base)) for task t, D_t [h, d'] and M_t [d', h].

    While learning, μ + exp(ℓ/2) ε is removed instead, ε standard normal noise and ℓ = V_t relu(D_t z). D, M and V
    minimise the mean absolute difference to the expert's features plus `kl` times the divergence of N(μ, e^ℓ) from
    N(0, 1), one Adam step per batch, from M = V = 0. `merged` weights replace the base. The task of an input has to be
    known, also with a shared adapter, whose batches alone come from all tasks. Cost: as surgery with h for r.
    """
    from fusionbench_lite.adaptation.learners.feature_adapters import Probabilistic
    from fusionbench_lite.adaptation.learners.surgery import FeatureSurgery

    return functools.partial(
        FeatureSurgery, experts, base_weights(experts, h.base, merged), Probabilistic(h.hidden, h.kl, h.seed), lr=h.lr,
        grouping="shared" if h.shared else "together",
    )
