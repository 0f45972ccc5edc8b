"""The rows every table starts with (Yang et al. 2024): the pretrained model, the experts, and one model trained on all
tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError
from fusionbench_lite.registry import REFERENCE, NoHyperparameters, method
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.compact import Own, PerTask
from fusionbench_lite.weights.costs import Learned
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.specs import StateDict

if TYPE_CHECKING:
    from torch import Tensor


@method("pretrained", label="Pretrained", family=REFERENCE)
def pretrained(experts: Experts, h: NoHyperparameters) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0: the pretrained model itself, the lower reference.

    Cost: none.
    """
    return iter(())


def _learned(of: Architecture, tasks: int, h: NoHyperparameters) -> Learned:
    return Learned({"encoders": tasks * of.parameters}, (tasks - 1) * of.parameters, task_id=True)


@method("individual", per_task=True, label="Individual experts", family=REFERENCE, learned=_learned)
def individual(experts: Experts, h: NoHyperparameters) -> Iterator[tuple[str, PerTask]]:
    """θ̂_t = θ_t: the expert of each task, its counters and masks too, the upper reference; one model per task.

    Cost: none; T models are kept.
    """
    for name in (*experts.floating, *experts.changed):
        yield name, Own(experts, name)


@method("traditional_mtl", inputs=("multitask",), label="Traditional MTL", family=REFERENCE)
def traditional_mtl(
    experts: Experts, h: NoHyperparameters, multitask: StateDict
) -> Iterator[tuple[str, Tensor]]:
    """θ = θ_mtl: one model trained from θ0 on the labelled data of all tasks.

    `multitask` is its state dict, with the keys, shapes and dtypes of `pretrained`; it is a checkpoint, not a merge.
    Cost: none here, but a training run on the data of all tasks before.
    """
    trained = Experts(experts.pretrained, {"traditional_mtl": multitask})
    if trained.floating != experts.floating:
        raise MergeError("multitask does not list the tensors of the pretrained model")
    for name in trained.floating:
        yield name, trained.expert("traditional_mtl", name).clone()
    for name in trained.changed:
        yield name, trained.stored("traditional_mtl", name).clone()
