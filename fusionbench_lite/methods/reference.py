"""The rows every table starts with: the pretrained model, the experts, and one model trained on all tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError
from fusionbench_lite.registry import NoHyperparameters, method
from fusionbench_lite.weights.compact import Own, PerTask
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.layout import StateDict

if TYPE_CHECKING:
    from torch import Tensor


@method("pretrained")
def pretrained(experts: Experts, h: NoHyperparameters) -> Iterator[tuple[str, Tensor]]:
    """The pretrained model itself: the lower reference."""
    return iter(())


@method("individual", per_task=True)
def individual(experts: Experts, h: NoHyperparameters) -> Iterator[tuple[str, PerTask]]:
    """The expert of each task: T models, the upper reference."""
    for name in experts.floating:
        yield name, Own(experts, name)


@method("traditional_mtl", inputs=("multitask",))
def traditional_mtl(
    experts: Experts, h: NoHyperparameters, multitask: StateDict
) -> Iterator[tuple[str, Tensor]]:
    """One model trained on the labelled data of all tasks.

    `multitask` is its state dict, with the keys, shapes and dtypes of `pretrained`; it is a checkpoint, not a merge.
    """
    trained = Experts(experts.pretrained, {"traditional_mtl": multitask})
    if trained.floating != experts.floating:
        raise MergeError("multitask does not list the tensors of the pretrained model")
    for name in trained.floating:
        yield name, trained.expert("traditional_mtl", name).clone()
