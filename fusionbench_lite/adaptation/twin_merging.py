"""Twin-Merging: low-rank experts around a merged model, mixed for every example by a router (Lu et al. 2024)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, integer, real
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture, Shape
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.adaptation.engine.descent import Learner

ROUTERS = ("tasks", "entropy")


@dataclasses.dataclass(frozen=True)
class TwinMerging:
    """`scaling`: coefficient of the task vectors in the shared expert. `rank_ratio`: part of the singular components of
    every matrix that the experts keep. `router`: what it learns from, the numbers of the tasks on training examples as
    in the paper, or the entropy of the predictions on unlabelled ones. `lr`: Adam's learning rate. `dropout`: part of the
    router's hidden states that a step drops. `seed`: of the router's weights and of dropout."""

    scaling: float = real(0.29)
    rank_ratio: float = real(0.1, low=0, high=1)
    router: str = choice("tasks", ROUTERS)
    lr: float = real(5e-4, low=0, open_low=True)
    dropout: float = real(0.5, low=0, high=1, open_high=True)
    seed: int = integer(0)


def _kept(of: Architecture, h: TwinMerging) -> Iterator[tuple[Shape, int]]:
    """Yield the tensors of a truncated difference, as factors or whole, and how many numbers each has."""
    for name, shape in of.tensors.items():
        if not name.endswith("bias"):
            yield shape, int(h.rank_ratio * min(shape)) * sum(shape) if len(shape) == 2 else math.prod(shape)


def _learned(of: Architecture, tasks: int, h: TwinMerging) -> costs.Learned:
    """A router d → 2d → 2d → T with batch normalisation; T truncated task vectors stay at inference."""
    factors, wide = sum(count for _, count in _kept(of, h)), 2 * of.width
    linear = of.width * wide + wide + wide * wide + wide + wide * tasks + tasks
    counts = {"router": linear, "batch normalisation": 4 * wide}
    extra = tasks * factors + sum(counts.values()) + 4 * wide  # running means and variances
    return costs.Learned(counts, extra, f"{factors:,} per truncated task vector", parts={"per task": factors})


def _tensors(s: costs.Setting) -> Iterator[costs.Tensors]:
    for shape, count in _kept(s.architecture, s.h):
        resident, size = s.tasks * count * costs.WORK, math.prod(shape)
        if len(shape) == 2:
            room = s.tasks * size * costs.WORK + costs.decomposition_room(shape, 1) + 8 * s.tasks * count
            yield costs.Tensors(own=resident, room=room, setup=s.tasks * costs.decomposition_flops(shape))
        else:
            yield costs.Tensors(own=resident, room=size * s.architecture.itemsize)


def _cost(s: costs.Setting) -> costs.Cost:
    """Linear layers and embeddings that are called apply low-rank parts to states; other tensors are summed."""
    summed = [
        math.prod(shape) * costs.WORK for name, shape in s.architecture.tensors.items()
        if not name.endswith("bias") and (len(shape) != 2 or name in ("positional_embedding", "proj"))
    ]
    states = 8 * s.tasks * s.h.rank_ratio  # of the components, before and after their gates
    mixture = costs.Mixture(sum(summed), max(summed), states, steps=s.h.router == "entropy")
    return costs.Cost(tuple(_tensors(s)), "features", merges=False, placeable=False, mixture=mixture)


@method(
    "twin_merging", TwinMerging, adaptive=True, routed=True, training=lambda h: h.router == "tasks", label="Twin-Merging",
    learned=_learned, cost=_cost,
)
def twin_merging(experts: Experts, h: TwinMerging) -> Learner:
    """θ(x) = θ* + Σ_t softmax(router(x))_t v_t with θ* = θ0 + scaling Σ_t τ_t and v_t the leading singular components of
    θ_t - θ* (Twin-Merging, Section 3).

    Tensors other than matrices are kept whole in v_t; biases stay those of θ0. The router, a perceptron on the token
    mean of the last block's output of θ*, learns which task an example is from, or lowers the entropy of the mixtures'
    predictions. Cost: T decompositions per matrix before; a step on the numbers of the tasks costs that of the router,
    one on the entropy a forward and backward pass in which a matrix [m, n] takes 2Tr(m + n) operations more per token,
    r = rank_ratio min(m, n); T times that many numbers in memory.
    """
    from fusionbench_lite.adaptation.learners.twin import Twin

    return functools.partial(
        Twin, experts, _shared(experts, h.scaling), rank_ratio=h.rank_ratio, of_tasks=h.router == "tasks", lr=h.lr,
        dropout=h.dropout, seed=h.seed,
    )


def _shared(experts: Experts, scaling: float) -> dict[str, Tensor]:
    """Return θ*, in the keys, order and dtypes of the pretrained model."""
    from fusionbench_lite.methods.api import merged_weights

    weights = merged_weights("task_arithmetic", experts, scaling=scaling)
    return {
        name: experts.pretrained[name].detach().clone() if name.endswith("bias") else tensor for name, tensor in weights.items()
    }
