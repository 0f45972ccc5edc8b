"""Twin-Merging: low-rank experts around a merged model, mixed for every example by a router (Lu et al. 2024)."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from fusionbench_lite.registry import choice, integer, method, real
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


@method("twin_merging", TwinMerging, adaptive=True, routed=True, training=lambda h: h.router == "tasks", label="Twin-Merging")
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

    return functools.partial(Twin, experts, h, _shared(experts, h.scaling))


def _shared(experts: Experts, scaling: float) -> dict[str, Tensor]:
    """Return θ*, in the keys, order and dtypes of the pretrained model."""
    from fusionbench_lite.methods.api import merge

    weights = merge("task_arithmetic", experts.pretrained, experts.by_task, scaling=scaling).state_dict()
    return {
        name: experts.pretrained[name].detach().clone() if name.endswith("bias") else tensor for name, tensor in weights.items()
    }
