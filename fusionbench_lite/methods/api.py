"""`fusionbench_lite.merge`: one call for every data-free method, in memory or from files to files."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fusionbench_lite import registry
from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.fields import describe
from fusionbench_lite.paths import atomic_directory, expanded
from fusionbench_lite.registry import REFERENCE
from fusionbench_lite.weights import buffers
from fusionbench_lite.weights.compact import PerTask
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.limits import Limits
from fusionbench_lite.weights.outputs import SHARD_BYTES, check_replaceable, check_tasks, checked_out, write_shards
from fusionbench_lite.weights.readers import open_experts, open_weights
from fusionbench_lite.weights.specs import StateDict

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
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
    `multitask`, `fisher_merging` and `regmean` their statistics as `fisher` and `gram`. Inputs are never modified.

    Raises MergeError naming the task, the key, both values and the fix: unknown method or hyperparameter, a value out
    of range, missing or extra keys, shape or dtype mismatch, tensors without values to merge (offloaded, quantised, sparse),
    non-finite values, results beyond the range of the dtype, no experts, unreadable files. Warns of counters and masks that
    experts changed.
    """
    view, entry, produced = _prepare(method, pretrained, experts, hyperparameters)
    tasks = tuple(view.tasks)
    if entry.per_task:
        stored = _stored(view, produced())
        view.check_unread()
        view.release(name for name, part in stored.items() if not part.on_base)
        unfold = {name: part.tensor for name, part in stored.items()}
        limits = produced.limits
        return Merged(
            method=method, hyperparameters=produced.hyperparameters, tasks=tasks, per_task=True, storage=_storage(view, stored),
            _state_dict=lambda task: _complete(view, ((name, tensor(task)) for name, tensor in unfold.items()), limits),  # type: ignore[arg-type]
        )
    merged = _complete(view, produced(), produced.limits)
    names = {name: view.tied.get(name, name) for name in view.specs}  # the inputs themselves are not kept
    return Merged(
        method=method, hyperparameters=produced.hyperparameters, tasks=tasks, per_task=False,
        storage={"pretrained": 0, "shared": _size(view), "per_task": 0},
        _state_dict=lambda task: _retied(names, {name: merged[name].clone() for name in names.values()}),
    )


def merged_weights(method: str, view: Experts, **hyperparameters: Any) -> dict[str, Tensor]:
    """Return the weights that `merge` makes of experts which have been checked and warned of already."""
    entry = registry.get(method)
    produced = _produced(entry, view, entry.configure(**hyperparameters), {})
    return _complete(view, produced(), produced.limits)


def merge_files(
    method: str, pretrained: Weights, experts: Mapping[str, Weights], out: str | os.PathLike[str], *,
    shard_bytes: int = SHARD_BYTES, **hyperparameters: Any,
) -> Path:
    """Merge as `merge` does and write the result to the directory `out` as safetensors, shard by shard.

    Memory holds one tensor of every expert and one shard of the output; bits are those of `merge`. A method that keeps
    one model per task writes `out/TASK` for each. Returns `out`. Raises MergeError as `merge` does, and for a directory that
    is, contains or lies inside an input, before anything is read; InputError when the directory cannot be written. Nothing is
    left there then, and an earlier result stays. It is replaced at the end; a directory with other files is refused.
    """
    if isinstance(shard_bytes, bool) or not isinstance(shard_bytes, int) or shard_bytes < 1:
        raise MergeError(f"shard_bytes must be an integer of at least 1, got {shard_bytes!r}")
    tasks = tuple(experts) if isinstance(experts, Mapping) else ()
    inputs = {"pretrained": pretrained, **hyperparameters}
    folder = checked_out(out, inputs | {f"expert {task!r}": experts[task] for task in tasks})
    per_task = registry.get(method).per_task
    if per_task:
        check_tasks(tasks, folder)
    check_replaceable(folder, tasks if per_task else ())
    view, _, produced = _prepare(method, pretrained, experts, hyperparameters)
    if not per_task:
        tensors = _begun(_finished(view, produced(), produced.limits))
        with atomic_directory(folder) as temporary:
            write_shards(temporary, tensors, shard_bytes)
        return expanded(out)
    parts = _begun(produced())
    with atomic_directory(folder) as temporary:
        stored = _stored(view, parts)
        for task in view.tasks:
            (temporary / task).mkdir()
            models = ((name, part.tensor(task)) for name, part in stored.items())
            write_shards(temporary / task, _finished(view, models, produced.limits), shard_bytes)
    return expanded(out)


def _begun(iterator: Iterator[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """Return an iterator that has done its first step, so that what a method refuses at once is refused before writing."""
    return itertools.chain(list(itertools.islice(iterator, 1)), iterator)


@dataclasses.dataclass(frozen=True)
class _Produced:
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


def _prepare(
    method: str, pretrained: Weights, experts: Mapping[str, Weights], hyperparameters: dict[str, Any]
) -> tuple[Experts, registry.Method, _Produced]:
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
    view = Experts(base, open_experts(experts, base))
    if view.changed and entry.family != REFERENCE:  # of which one keeps them, one has its own, and one is the pretrained model
        buffers.warn_kept(view.changed)
    return view, entry, _produced(entry, view, configured, extra)


def _produced(entry: registry.Method, view: Experts, configured: Any, extra: dict[str, Any]) -> _Produced:
    limits = Limits(entry.id, scaled="scaling" in entry.defaults)
    return _Produced(describe(configured), limits, lambda: entry.function(view, configured, **extra))


def _stored(view: Experts, produced: Iterator[tuple[str, PerTask]]) -> dict[str, PerTask]:
    return {name: part for name, part in produced if name not in view.tied}


def _finished(view: Experts, produced: Iterator[tuple[str, Tensor]], limits: Limits) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a full state dict: produced ones in the dtype of the base, then the rest from the base.

    Raises MergeError for a value that the dtype of the base cannot hold.
    """
    repeats: dict[str, list[str]] = {}
    for name, first in view.tied.items():
        repeats.setdefault(first, []).append(name)
    missing = dict.fromkeys(view.specs)
    for name, tensor in produced:
        if name in view.tied:
            continue
        spec = view.specs[name]
        done = limits.cast(name, tensor, spec.dtype, finite=view.known_finite(tensor)).reshape(spec.shape).contiguous()
        for listed in (name, *repeats.get(name, ())):
            del missing[listed]
            yield listed, done
    for name in missing:
        yield name, view.kept(name)
    view.check_unread()
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
