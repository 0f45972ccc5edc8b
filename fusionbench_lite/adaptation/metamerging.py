"""MetaMerging: coefficients that adapters can make the most of, by learning through their training (2025)."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from fusionbench_lite.adaptation.adamerging import task_vectors
from fusionbench_lite.adaptation.base import base_weights
from fusionbench_lite.errors import MergeError
from fusionbench_lite.fields import choice, integer, real, word
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.descent import Learner
    from fusionbench_lite.adaptation.engine.procedure import Context, Procedure

ORDERS = ("second", "first")
ADAPTERS = ("blocks", "final", "none")
LOSSES = ("mse", "norm")
OPTIMIZERS = ("adam", "sgd")
FEATURES = ("final", "positions")
UPDATES = ("sum", "task")
SPLITS = ("test", "train")
JUDGED = ("adapted", "merged")


@dataclasses.dataclass(frozen=True)
class MetaMerging:
    """`raw`: softplus(raw) is the initial coefficient of every task. `inner_steps`: updates of the adapters before a
    step on the coefficients. `inner_lr`: their rate. `lr`: learning rate of raw. `order`: with or without the second-order
    part of the gradient. `adapters`: behind every block, on the final feature, or none. `rank`: width inside an adapter.
    `adapter_lr`: Adam's learning rate for the adapters afterwards. `adapter_steps`: how many of the steps are theirs,
    the last ones; null is half. `loss`: mean square of the difference to the expert's features, or the mean of its
    norm. `optimizer`: of raw. `seed`: of the adapters' initial weights. `base`: a method whose merged model takes the
    place of learned coefficients, so that all steps train adapters. `outer_batch_size`, `adapter_batch_size`: examples of
    each task for a step on raw, and for one on the adapters afterwards; null is the run's batch size, which is that of the
    inner steps. `fbl.adapt` takes batches as they are given. `features`: what the head reads ("final"), or hidden states at all
    positions of the inputs, as the released code has it for GPT-2. `length`: positions that inputs are padded to, whose states
    count then; null counts those of the inputs alone. `updates`: a step on raw for the sum of the tasks' losses, or after each
    task's, with the weights merged anew. `split`: of the data that steps read; "train" keeps the examples of the steps on raw apart
    from those that adapters learn from. `judged`: "merged" leaves the adapters out of the model that is evaluated, one of all tasks
    then (MetaMerging w/o adapters, Tables 5 and 6)."""

    raw: float = real(-2.014)
    inner_steps: int = integer(1, low=0)
    inner_lr: float = real(0.1, low=0)
    lr: float = real(0.01, low=0, open_low=True)
    order: str = choice("second", ORDERS)
    adapters: str = choice("blocks", ADAPTERS)
    rank: int = integer(64, low=1)
    adapter_lr: float = real(1e-3, low=0, open_low=True)
    adapter_steps: int | None = integer(None, low=0, optional=True)
    loss: str = choice("mse", LOSSES)
    optimizer: str = choice("adam", OPTIMIZERS)
    seed: int = integer(0)
    base: str | None = word(None, optional=True)
    outer_batch_size: int | None = integer(None, low=1, optional=True, later=True)
    adapter_batch_size: int | None = integer(None, low=1, optional=True, later=True)
    features: str = choice("final", FEATURES, later=True)
    length: int | None = integer(None, low=1, optional=True, later=True)
    updates: str = choice("sum", UPDATES, later=True)
    split: str = choice("test", SPLITS, later=True)
    judged: str = choice("adapted", JUDGED, later=True)


def _learned(of: Architecture, tasks: int, h: MetaMerging) -> costs.Learned:
    count, side = {"blocks": (of.blocks, of.width), "final": (1, of.output), "none": (0, of.width)}[h.adapters]
    adapter = 2 * side * h.rank + h.rank + side
    per_task = count * adapter
    note = f"{per_task:,} per task: an adapter of {adapter:,} after each of {count} blocks" if h.adapters == "blocks" else ""
    counts = ({} if h.base else {"coefficients": tasks}) | {"adapters": tasks * per_task}
    parts = {"adapter": adapter, "per task": per_task}
    kept = h.judged == "adapted"
    return costs.Learned(counts=counts, extra=tasks * per_task if kept else 0, note=note, task_id=kept, parts=parts)


def stages(h: MetaMerging, steps: int) -> tuple[costs.Stage, ...]:
    """Return the stages of a run of so many steps: on the coefficients, unless weights are given, then on the adapters."""
    if h.base:
        return (costs.Stage(merges=False, steps=steps, batch=h.adapter_batch_size),)
    last = adapter_steps(h, steps)
    first = costs.Stage(
        merges=True, steps=steps - last, batch=h.outer_batch_size, inner=h.inner_steps, second=h.order == "second",
        adapted=h.adapters != "none", runs=h.adapter_steps is None or not 0 < steps <= h.adapter_steps,
    )
    return (first,) if h.adapters == "none" or h.adapter_steps == 0 else (first, costs.Stage(
        merges=False, steps=last, batch=h.adapter_batch_size
    ))


def adapter_steps(h: MetaMerging, steps: int) -> int:
    """Return how many of the steps are those of the adapters."""
    if h.adapters == "none":
        return 0
    return steps // 2 if h.adapter_steps is None else min(h.adapter_steps, steps)


def _cost(s: costs.Setting) -> costs.Cost:
    tensors = () if s.h.base else tuple(costs.vectors(s))
    return costs.Cost(
        tensors, "stages", given=bool(s.h.base), stages=stages(s.h, s.steps), everywhere=s.h.features == "positions"
    )


@method(
    "metamerging", MetaMerging, adaptive=True, inputs=("merged",), training=lambda h: h.split == "train", label="MetaMerging",
    learned=_learned, cost=_cost,
)
def metamerging(experts: Experts, h: MetaMerging, merged: Any = None) -> Learner:
    """θ = θ0 + Σ_t softplus(raw_t) τ_t, and per task adapters h - (U relu(D h + d) + u) on what leaves a block.

    raw minimises Σ_t of the distance between the adapted model's features and expert t's, on new data after
    `inner_steps` gradient steps on the adapters, through which the gradient is taken. Then raw stays, and the adapters
    minimise the same distance. A `base`, or `merged` weights, take the place of θ. The task of an input has to be known.
    Cost: per step and task, a forward and backward pass over a batch, as many again for every inner step, and about two
    for its second-order part; O(Td) for the merge and its gradient; all task vectors in memory, and the experts, whose
    features of an example are computed once.
    """
    from fusionbench_lite.adaptation.learners.adapter_training import Adapters, AdapterTraining
    from fusionbench_lite.adaptation.learners.meta import Meta, Softplus, Stage

    adapters = Adapters(
        place=h.adapters, rank=h.rank, loss=h.loss, seed=h.seed, lr=h.adapter_lr, batch_size=h.adapter_batch_size,
        positions=h.features == "positions", length=h.length, split=h.split, kept=h.judged == "adapted",
    )
    if merged is not None or h.base is not None:
        if h.adapters == "none":
            raise MergeError("adapters='none' leaves nothing to learn on given weights: choose blocks or final")
        return functools.partial(AdapterTraining, experts, adapters, base_weights(experts, h.base or "", merged))
    vectors = {name: task_vectors(experts, name) for name in experts.names}
    parametrisation = Softplus(experts, vectors, h.raw, lr=h.lr, shared=True)

    def learner(context: Context) -> Procedure:
        if h.adapters != "none" and (h.adapter_steps or 0) > context.steps:
            raise MergeError(
                f"adapter_steps is {h.adapter_steps} of {context.steps} steps: lower it, or leave it out for half of the steps"
            )
        first = Stage(
            steps=context.steps - adapter_steps(h, context.steps), inner_steps=h.inner_steps if h.adapters != "none" else 0,
            inner_lr=h.inner_lr, second=h.order == "second", batch_size=h.outer_batch_size, adam=h.optimizer == "adam",
            per_task=h.updates == "task",
        )
        return Meta(experts, adapters, first, parametrisation, context)

    return learner
