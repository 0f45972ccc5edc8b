"""SurgeryV2: adapters per task behind every block of a merged model (Yang et al. 2024)."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from fusionbench_lite.adaptation.base import base_weights
from fusionbench_lite.fields import integer, real, word
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.descent import Learner


@dataclasses.dataclass(frozen=True)
class SurgeryV2:
    """`base`: the method whose merged model the adapters sit on. `rank`: width of an adapter inside. `lr`: Adam's
    learning rate. `seed`: of the initial weights."""

    base: str = word("task_arithmetic")
    rank: int = integer(16, low=1)
    lr: float = real(1e-3, low=0, open_low=True)
    seed: int = integer(0)


def _learned(of: Architecture, tasks: int, h: SurgeryV2) -> costs.Learned:
    each = 2 * h.rank * (of.blocks * of.width + of.output)
    return costs.Learned({"adapters": tasks * each}, tasks * each, f"{each:,} per task", task_id=True, parts={"per task": each})


def _cost(s: costs.Setting) -> costs.Cost:
    return costs.Cost(kind="adapters", merges=False)


@method("surgery_v2", SurgeryV2, adaptive=True, inputs=("merged",), label="SurgeryV2", learned=_learned, cost=_cost)
def surgery_v2(experts: Experts, h: SurgeryV2, merged: Any = None) -> Learner:
    """Hidden states h - U_tl relu(D_tl h) behind every block l of θ_base, on every token, and such an adapter on the
    features.

    The next block reads the adapted states. D [r, w] and U [w, r] minimise, for task t, Σ_l of the mean absolute
    difference between the states' mean over tokens and the expert's, features included, on unlabelled batches: one Adam
    step per batch, from U = 0. `merged` weights replace the base. The task of an input has to be known. Cost: the merge,
    and one forward pass of the expert per example, whose means are kept; per step one forward and backward pass of the
    merged model over a batch of every task.
    """
    from fusionbench_lite.adaptation.learners.block_surgery import BlockSurgery

    base = base_weights(experts, h.base, merged)
    return functools.partial(BlockSurgery, experts, base, rank=h.rank, lr=h.lr, seed=h.seed)
