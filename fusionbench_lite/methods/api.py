"""`fusionbench_lite.merge`: one call for every data-free method; `files` is the same from files to files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fusionbench_lite import registry
from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.fields import describe
from fusionbench_lite.registry import REFERENCE
from fusionbench_lite.weights import buffers
from fusionbench_lite.weights.compact import PerTask
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.limits import Limits
from fusionbench_lite.weights.readers import open_experts, open_weights
from fusionbench_lite.weights.specs import StateDict

if TYPE_CHECKING:
    from torch import Tensor

Fit = Callable[[StateDict, Mapping[str, StateDict]], tuple[StateDict, Mapping[str, StateDict]]]
Weights = StateDict | str | os.PathLike[str]
"""A state dict, or the path of a safetensors file or directory; for experts also of a PEFT adapter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merged:
    """A merged model, or one model per task in compact form.

    Attributes: `method`, the id; `hyperparameters`, the values used; `tasks`, the task names; `per_task`, whether
    `state_dict` needs a task; `storage`, the bytes that a server of all tasks keeps: the `pretrained` model where the
    stored form is a difference from it, what all tasks have in common (`shared`) and what the T tasks need in
    addition (`per_task`).
    """

    method: str
    hyperparameters: Mapping[str, Any]
    tasks: tuple[str, ...]
    per_task: bool
    storage: Mapping[str, int]
    _state_dict: Callable[[str | None], dict[str, Tensor]] = dataclasses.field(repr=False)

    def state_dict(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the weights: the keys, order, shapes and dtypes of `pretrained`, in memory of their own.

        `task` is needed where the method keeps one model per task and ignored where it does not. Tensors that are
        tied in `pretrained` are tied again. Raises MergeError for a missing or unknown task.
        """
        if task is None and self.per_task:
            raise MergeError(
                f"{self.method} keeps one model per task: call state_dict(task) with one of {', '.join(self.tasks)}"
            )
        if task is not None and task not in self.tasks:
            raise MergeError(f"unknown task {task!r}: {did_you_mean(task, self.tasks)}")
        return self._state_dict(task)


def merge(method: str, pretrained: Weights, experts: Mapping[str, Weights], **hyperparameters: Any) -> Merged:
    """Merge experts that were fine-tuned from one pretrained model.

    `pretrained` maps names to tensors; `experts` maps each task to such a mapping with the same keys, shapes and
    dtypes, and its order is the task order. Either may be a path instead: a .safetensors file, a directory of them, or
    for experts a PEFT adapter, whose s·B·A is added to the pretrained weights; files are read one tensor at a time.
    Hyperparameters are those of `registry.get(method).defaults`; `traditional_mtl` takes the trained weights as
    `multitask`, `fisher_merging`, `regmean` and `tatr` their statistics as `fisher`, `gram` and `gradients`. Inputs are
    never modified.

    Raises MergeError naming the task, the key, both values and the fix: unknown method or hyperparameter, a value out
    of range, missing or extra keys, shape or dtype mismatch, tensors without values to merge (offloaded, quantised, sparse),
    non-finite values, results beyond the range of the dtype, no experts, unreadable files. Warns of counters and masks that
    experts changed.
    """
    view, entry, produced = prepare(method, pretrained, experts, hyperparameters)
    tasks = tuple(view.tasks)
    if entry.per_task:
        stored = stored_parts(view, produced())
        view.check_unread()
        view.release(name for name, part in stored.items() if not part.on_base)
        return unfolding(method, view, stored, produced.hyperparameters, produced.limits)
    merged = _complete(view, produced(), produced.limits)
    names = {name: view.tied.get(name, name) for name in view.specs}  # the inputs themselves are not kept
    return Merged(
        method=method, hyperparameters=produced.hyperparameters, tasks=tasks, per_task=False,
        storage={"pretrained": 0, "shared": _size(view), "per_task": 0},
        _state_dict=lambda task: _retied(names, {name: merged[name].clone() for name in names.values()}),
    )


def unfolding(
    method: str, view: Experts, stored: Mapping[str, PerTask], hyperparameters: Mapping[str, Any], limits: Limits
) -> Merged:
    """Return the models of a method that keeps one per task, of the stored form of every tensor, made when they are asked for."""
    unfold = {name: part.tensor for name, part in stored.items()}
    return Merged(
        method=method, hyperparameters=hyperparameters, tasks=tuple(view.tasks), per_task=True, storage=_storage(view, stored),
        _state_dict=lambda task: _complete(view, ((name, tensor(task)) for name, tensor in unfold.items()), limits),  # type: ignore[arg-type]
    )


def merged_weights(method: str, view: Experts, **hyperparameters: Any) -> dict[str, Tensor]:
    """Return the weights that `merge` makes of experts which have been checked and warned of already."""
    entry = registry.get(method)
    produced = _produced(entry, view, entry.configure(**hyperparameters), {})
    return _complete(view, produced(), produced.limits)


@dataclasses.dataclass(frozen=True)
class Produced:
    """The method with everything it needs, ready to be called."""

    hyperparameters: Mapping[str, Any]
    limits: Limits
    call: Callable[[], Iterator[tuple[str, Any]]]

    def __call__(self) -> Iterator[tuple[str, Any]]:
        try:
            yield from self.call()
        except (RuntimeError, OverflowError) as error:
            if "overflow" not in str(error):
                raise
            raise MergeError(
                f"{self.limits.method}: a hyperparameter is beyond the range of the weights' dtype "
                f"({', '.join(f'{name}={value}' for name, value in self.hyperparameters.items())}): lower it"
            ) from error


def prepare(
    method: str, pretrained: Weights, experts: Mapping[str, Weights], hyperparameters: dict[str, Any], *,
    fit: Fit | None = None,
) -> tuple[Experts, registry.Method, Produced]:
    """Return the checked view of the inputs, the method, and the method ready to be called.

    `fit` makes the opened inputs fit each other before they are compared. Raises MergeError as `merge` does.
    """
    entry = registry.get(method)
    if entry.adaptive:
        raise MergeError(f"method {method!r} learns from unlabelled data: call fusionbench_lite.adapt")
    extra = {}
    for name in entry.inputs:
        if hyperparameters.get(name) is None:
            raise MergeError(f"method {method!r} needs the argument {name!r}: see its documentation")
        extra[name] = hyperparameters.pop(name)
    configured = entry.configure(**hyperparameters)  # before anything is opened
    base = open_weights(pretrained, None, "pretrained")
    opened: Mapping[str, StateDict] = open_experts(experts, base)
    if fit is not None:
        base, opened = fit(base, opened)
    view = Experts(base, opened)
    if view.changed and entry.family != REFERENCE:  # of which one keeps them, one has its own, and one is the pretrained model
        buffers.warn_kept(view.changed)
    return view, entry, _produced(entry, view, configured, extra)


def _produced(entry: registry.Method, view: Experts, configured: Any, extra: dict[str, Any]) -> Produced:
    limits = Limits(entry.id, scaled="scaling" in entry.defaults)
    return Produced(describe(configured), limits, lambda: entry.function(view, configured, **extra))


def stored_parts(view: Experts, produced: Iterator[tuple[str, PerTask]]) -> dict[str, PerTask]:
    """Return the stored form of every tensor of a method that keeps one model per task."""
    return {name: part for name, part in produced if name not in view.tied}


class Result(NamedTuple):
    """A tensor of the merged model, under all its names, before it has the dtype of the base.

    `finite`: whether its values are known to be; `kept`: whether it is the pretrained model's own.
    """

    names: tuple[str, ...]
    tensor: Tensor
    finite: bool
    kept: bool


def results(view: Experts, produced: Iterator[tuple[str, Tensor]]) -> Iterator[Result]:
    """Yield every tensor of a full state dict that is not finished: produced ones, then the rest from the base.

    The inputs of a tensor are checked before it is handed out.
    """
    repeats: dict[str, list[str]] = {}
    for name, first in view.tied.items():
        repeats.setdefault(first, []).append(name)
    missing = {name: None for name in view.specs if name not in view.finished}
    for name, tensor in produced:
        if name in view.tied or name in view.finished:
            continue
        names = (name, *repeats.get(name, ()))
        for listed in names:
            del missing[listed]
        finite = view.known_finite(tensor)
        view.check(name)
        yield Result(names, tensor, finite, False)
        del tensor
    for name in missing:
        view.check(name)
        yield Result((name,), view.kept(name), True, True)
    view.check_unread()


def _finished(view: Experts, produced: Iterator[tuple[str, Tensor]], limits: Limits) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a full state dict in the dtype of the base.

    Raises MergeError for a value that this dtype cannot hold.
    """
    for names, tensor, finite, kept in results(view, produced):
        spec = view.specs[names[0]]
        done = tensor if kept else limits.cast(names[0], tensor, spec.dtype, finite=finite).reshape(spec.shape).contiguous()
        for name in names:
            yield name, done
    limits.warn()


def _complete(view: Experts, produced: Iterator[tuple[str, Tensor]], limits: Limits) -> dict[str, Tensor]:
    """Return the full state dict in the order of the base, sharing no memory with the inputs."""
    done = {}
    for name, tensor in _finished(view, produced, limits):
        done[name] = tensor.clone() if _is_input(view, name, tensor) else tensor
    return _retied({name: view.tied.get(name, name) for name in view.specs}, done)


def _is_input(view: Experts, name: str, tensor: Tensor) -> bool:
    if not tensor.untyped_storage().resizable():
        return True  # the mapped pages of a file
    everyone = (view.pretrained, *view.by_task.values())
    # A mapping that reads files hands out new tensors, unless it says that it holds them somewhere.
    in_memory = [weights for weights in everyone if not hasattr(weights, "spec") or getattr(weights, "place", "disk") != "disk"]
    shares = any(name in weights and weights[name].data_ptr() == tensor.data_ptr() for weights in in_memory)
    return shares and tensor.numel() > 0


def _retied(names: Mapping[str, str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under all names, in order; `names` leads from each to the first name of its storage."""
    return {name: weights[first] for name, first in names.items()}


def _size(view: Experts) -> int:
    """Return the bytes of the model, tied tensors once."""
    return sum(spec.nbytes for name, spec in view.specs.items() if name not in view.tied)


def _storage(view: Experts, stored: Mapping[str, PerTask]) -> dict[str, int]:
    buffers = {buffer.key: buffer for part in stored.values() for buffer in part.buffers()}
    on_base = any(part.on_base for part in stored.values())
    return {
        "pretrained": _size(view) if on_base else 0,
        "shared": sum(buffer.nbytes for buffer in buffers.values() if buffer.shared),
        "per_task": sum(buffer.nbytes for buffer in buffers.values() if not buffer.shared),
    }
