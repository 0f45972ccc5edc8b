"""WEMoE: perceptrons mixed for every example by learned routers (Tang et al. 2024)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, integer, real
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
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


def _learned(of: Architecture, tasks: int, h: Wemoe) -> costs.Learned:
    """A router d → d → T per block; the task vectors of the perceptrons stay at inference."""
    if not of.perceptrons:
        return costs.Learned(None, note="no module is called mlp")
    router = of.width**2 + of.width + of.width * tasks + tasks
    extra = tasks * of.perceptrons + of.blocks * router
    return costs.Learned(
        {"routers": of.blocks * router}, extra, f"{router:,} per router",
        parts={"router": router, "kept of what is read": of.used + extra},
    )


def _cost(s: costs.Setting) -> costs.Cost:
    """The perceptrons of all tasks around the pretrained ones."""
    sizes = [math.prod(shape) for name, shape in s.architecture.tensors.items() if ".mlp." in name]
    tensors = (
        costs.Tensors(own=(1 + s.tasks) * size * costs.WORK, room=size * s.architecture.itemsize, setup=s.tasks * size)
        for size in sizes
    )
    return costs.Cost(tuple(tensors), "routers", merges=False, placeable=False)


@method("wemoe", Wemoe, adaptive=True, routed=True, label="WEMoE", learned=_learned, cost=_cost)
def wemoe(experts: Experts, h: Wemoe) -> Learner:
    """θ_mlp(h) = θ0_mlp + Σ_t g_t(h) τ_t,mlp with g(h) = mean over tokens of W2 relu(W1 h + b1) + b2, all else
    θ0 + scaling Σ_t τ_t (WEMoE, Section 3).

    A router per perceptron minimises Σ_t of the mean entropy of task t's predictions on unlabelled batches; b2 starts at
    `scaling`, so the model starts near task arithmetic. The experts stay in use: all perceptrons are kept. Cost: per step one
    forward and backward pass over a batch of every task; a perceptron of s weights costs O(Ts) more for every
    example; T perceptrons in memory, mixed ones for a few examples at a time.
    """
    from fusionbench_lite.adaptation.learners.wemoe import Routing
    from fusionbench_lite.methods.api import merged_weights

    base = merged_weights("task_arithmetic", experts, scaling=h.scaling)
    return functools.partial(
        Routing, experts, base, scaling=h.scaling, lr=h.lr, falling=h.schedule == "cosine", whole_batch=h.routing == "batch",
        seed=h.seed,
    )
