"""Traditional multi-task learning: the upper reference of every table, one encoder trained on the labels of all tasks."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from fusionbench_lite.fields import integer, real
from fusionbench_lite.registry import REFERENCE, method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.descent import Learner


@dataclasses.dataclass(frozen=True)
class TraditionalMtl:
    """`lr`: AdamW's learning rate at its highest. `weight_decay`: its decoupled decay. `warmup`: steps of linear growth
    before the cosine decay to 0. `clip`: the largest norm of the gradient."""

    lr: float = real(1e-5, low=0, open_low=True)
    weight_decay: float = real(0.1, low=0)
    warmup: int = integer(500, low=0)
    clip: float = real(1.0, low=0, open_low=True)


def _learned(of: Architecture, tasks: int, h: TraditionalMtl) -> costs.Learned:
    return costs.Learned({"encoder": of.parameters})


def _cost(s: costs.Setting) -> costs.Cost:
    return costs.Cost(kind="training", merges=False, placeable=False)


@method(
    "traditional_mtl", TraditionalMtl, adaptive=True, training=lambda h: True, label="Traditional MTL", family=REFERENCE,
    learned=_learned, cost=_cost,
)
def traditional_mtl(experts: Experts, h: TraditionalMtl) -> Learner:
    """θ minimises Σ_t of the mean cross entropy of task t's predictions, from θ0, with AdamW.

    The experts are not read; batches are pairs of inputs and labels, heads stay frozen. No paper publishes its recipe:
    this is the recipe of the experts with balanced batches (docs/decisions.md, D11). Cost: per step one forward and
    backward pass over a batch of every task; four models in memory.
    """
    from fusionbench_lite.adaptation.learners.training import Course, Training

    return functools.partial(Training, experts, Course(lr=h.lr, weight_decay=h.weight_decay, warmup=h.warmup, clip=h.clip))
