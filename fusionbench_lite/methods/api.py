"""`fusionbench_lite.merge`: one call for every data-free method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fusionbench_lite import registry
from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.weights.experts import Experts, StateDict

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Merged:
    """A merged model, or one model per task.

    Attributes: `method`, the id; `hyperparameters`, the values used; `tasks`, the task names; `per_task`, whether
    `state_dict` needs a task.
    """

    method: str
    hyperparameters: Mapping[str, Any]
    tasks: tuple[str, ...]
    per_task: bool
    _state_dict: Callable[[str | None], dict[str, Tensor]] = dataclasses.field(repr=False)

    def state_dict(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the weights: the keys, order, shapes and dtypes of `pretrained`, in memory of their own.

        `task` is needed where the method keeps one model per task and ignored where it does not. Raises MergeError
        for a missing or unknown task.
        """
        if task is None and self.per_task:
            raise MergeError(
                f"{self.method} keeps one model per task: call state_dict(task) with one of {', '.join(self.tasks)}"
            )
        if task is not None and task not in self.tasks:
            raise MergeError(f"unknown task {task!r}: {did_you_mean(task, self.tasks)}")
        return self._state_dict(task)


def merge(method: str, pretrained: StateDict, experts: Mapping[str, StateDict], **hyperparameters: Any) -> Merged:
    """Merge experts that were fine-tuned from one pretrained model.

    `pretrained` maps names to tensors; `experts` maps each task to such a mapping with the same keys, shapes and
    dtypes, and its order is the task order. Hyperparameters are those of `registry.get(method).defaults`;
    `traditional_mtl` takes the trained weights as `multitask`. Inputs are never modified.

    Raises MergeError naming the task, the key, both values and the fix: unknown method or hyperparameter, a value out
    of range, missing or extra keys, shape or dtype mismatch, non-finite values, no experts.
    """
    entry = registry.get(method)
    if entry.adaptive:
        raise MergeError(f"method {method!r} learns from unlabelled data: call fusionbench_lite.adapt")
    extra = {}
    for name in entry.inputs:
        if hyperparameters.get(name) is None:
            raise MergeError(f"method {method!r} needs the argument {name!r}: see its documentation")
        extra[name] = hyperparameters.pop(name)
    configured = entry.configure(**hyperparameters)
    view = Experts(pretrained, experts)

    def weights(task: str | None) -> dict[str, Tensor]:
        extra_task = {"task": task} if entry.per_task else {}
        return _complete(view, entry.function(view, configured, **extra, **extra_task))

    if entry.per_task:
        view.check_unread()
        return Merged(method, registry.describe(configured), tuple(view.tasks), True, weights)
    merged = weights(None)
    view.check_unread()
    return Merged(method, registry.describe(configured), tuple(view.tasks), False, lambda task: _copied(merged))


def _copied(weights: StateDict) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}


def _complete(view: Experts, produced: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return a full state dict: produced tensors in the dtype of the base, all others copied from the base."""
    changed = {}
    for name, tensor in produced:
        base = view.pretrained[name]
        changed[name] = tensor.to(base.dtype).reshape(base.shape).contiguous()
        inputs = {base.data_ptr(), *(weights[name].data_ptr() for weights in view.by_task.values())}
        if changed[name].data_ptr() in inputs:
            changed[name] = changed[name].clone()
    return {
        name: changed[name] if name in changed else tensor.detach().clone() for name, tensor in view.pretrained.items()
    }
