"""Representation Surgery: an adapter per task on the features of a merged model (Yang et al. 2024)."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from fusionbench_lite.adaptation.base import base_weights
from fusionbench_lite.fields import choice, flag, integer, real, word
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.descent import Learner

MOMENTS = ("own", "all")


@dataclasses.dataclass(frozen=True)
class Surgery:
    """`base`: the method whose merged model the adapters sit on. `rank`: width of an adapter inside. `lr`: Adam's
    learning rate. `seed`: of the initial weights. `normalise`: scale features to length 1 before the adapter and the
    loss, as FusionBench does. `moments`: "own" updates a task's adapter by its own batches alone; with "all" it also
    moves on by its momentum at every other task's batch, as the released code did under torch 1."""

    base: str = word("task_arithmetic")
    rank: int = integer(16, low=1)
    lr: float = real(1e-3, low=0, open_low=True)
    seed: int = integer(0)
    normalise: bool = flag(False)
    moments: str = choice("own", MOMENTS)


def _learned(of: Architecture, tasks: int, h: Surgery) -> costs.Learned:
    """Down and up projections of the final feature, without biases."""
    each = 2 * h.rank * of.output
    return costs.Learned({"adapters": tasks * each}, tasks * each, f"{each:,} per task", task_id=True, parts={"per task": each})


def _cost(s: costs.Setting) -> costs.Cost:
    return costs.Cost(kind="features", merges=False)


@method("surgery", Surgery, adaptive=True, inputs=("merged",), label="Surgery", learned=_learned, cost=_cost)
def surgery(experts: Experts, h: Surgery, merged: Any = None) -> Learner:
    """Features z(θ_base) - U_t relu(D_t z(θ_base)) for task t, D_t [r, d'] and U_t [d', r] (Surgery, Eq. 3).

    D and U bring the features of the merged model close to those of the task's expert: they minimise the mean absolute
    difference on unlabelled batches, one Adam step per batch, from U = 0. `merged` weights replace the base. The task
    of an input has to be known. Cost: the merge, one forward pass of the merged model and one of the expert per
    example, whose features are kept; a step is O(TBrd') for B examples of d' features per task.
    """
    from fusionbench_lite.adaptation.learners.feature_adapters import Reduction
    from fusionbench_lite.adaptation.learners.surgery import FeatureSurgery

    return functools.partial(
        FeatureSurgery, experts, base_weights(experts, h.base, merged), Reduction(h.rank, h.seed), lr=h.lr,
        grouping="together" if h.moments == "own" else "apart", normalise=h.normalise,
    )
