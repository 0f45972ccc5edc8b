"""MAP: coefficients from a quadratic surrogate of the tasks' metrics (Li et al. 2025).

arXiv:2406.07529 and its released code. The code bends the surrogate by a sigmoid, draws one-hot, equal and grid coefficients, and
searches the whole Pareto front by NSGA-III; here the surrogate is the paper's plain quadratic, coefficients are uniform, and only
the point is found that equal preferences pick of the front: a reconstruction in these points (docs/decisions.md, D57).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, integer, real
from fusionbench_lite.registry import STATISTICS, method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.descent import Learner

METRICS = ("error", "loss")


@dataclasses.dataclass(frozen=True)
class Map:
    """`high`: coefficients are drawn from, and looked for in, [0, high]. `metric`: what is fitted of every task, the "error" rate
    or the "loss", its cross entropy. `scaling`: every λ before the first draw. `seed`: of the draws."""

    high: float = real(1.0, low=0, open_low=True)
    metric: str = choice("error", METRICS)
    scaling: float = real(0.3)
    seed: int = integer(0)


@method(
    "map", Map, adaptive=True, training=lambda h: True, label="MAP", family=STATISTICS, learned=costs.task_coefficients,
    cost=costs.descent_on_vectors,
)
def map_of_pareto_front(experts: Experts, h: Map) -> Learner:
    """θ = θ0 + Σ_t c_t τ_t, c the minimum in [0, high]^T of Σ_n M̃_n(c), M̃_n(c) = ½ cᵀA_n c + b_nᵀc + e_n fitted by least squares
    to the error of task n at coefficients that are drawn uniformly, one vector a step.

    Such a minimum is a point of the surrogates' Pareto front. Metrics are those of one batch of labelled
    training examples, the same in every step of a run. With fewer draws than the (T+1)(T+2)/2 unknowns of a surrogate, c is the
    best draw. Cost: per step one forward pass over the batch of every task and O(Td) for the merge; all task vectors in memory.
    """
    from fusionbench_lite.adaptation.learners.surrogate import Surrogates

    return lambda context: Surrogates(experts, h.high, h.metric, h.scaling, h.seed, context)
