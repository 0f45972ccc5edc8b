"""WEMoE: perceptrons mixed for every example by learned routers (Tang et al. 2024)."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from fusionbench_lite.registry import choice, integer, method, real
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.descent import Learner

SCHEDULES = ("cosine", "constant")
ROUTINGS = ("example", "batch")


@dataclasses.dataclass(frozen=True)
class Wemoe:
    """`scaling`: coefficient of the tensors outside the perceptrons, and of all at the start. `lr`: Adam's learning rate.
    `schedule`: the learning rate falls to 0 along a cosine, or stays. `routing`: one mixture for every example, as the
    authors' code does, or for the batch of a task, as FusionBench does. `seed`: of the routers' initial weights."""

    scaling: float = real(0.3)
    lr: float = real(1e-4, low=0, open_low=True)
    schedule: str = choice("cosine", SCHEDULES)
    routing: str = choice("example", ROUTINGS)
    seed: int = integer(0)


@method("wemoe", Wemoe, adaptive=True, routed=True, label="WEMoE")
def wemoe(experts: Experts, h: Wemoe) -> Learner:
    """θ_mlp(h) = θ0_mlp + Σ_t g_t(h) τ_t,mlp with g(h) = mean over tokens of W2 relu(W1 h + b1) + b2, all else
    θ0 + scaling Σ_t τ_t (WEMoE, Section 3).

    A router per perceptron minimises Σ_t of the mean entropy of task t's predictions on unlabelled batches; b2 starts at
    `scaling`, so the model starts near task arithmetic. The experts stay in use: all perceptrons are kept. Cost: per step one
    forward and backward pass over a batch of every task; a perceptron of s weights costs O(Ts) more for every
    example; T perceptrons in memory, mixed ones for a few examples at a time.
    """
    from fusionbench_lite.adaptation.learners.wemoe import Routing
    from fusionbench_lite.methods.api import merge

    base = merge("task_arithmetic", experts.pretrained, experts.by_task, scaling=h.scaling).state_dict()
    return functools.partial(Routing, experts, h, base)
