"""What users give to `fusionbench_lite.adapt` beside the model: heads, batches and steps."""

from __future__ import annotations

import contextlib
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.lazy import torch

if TYPE_CHECKING:
    from torch import nn

    from fusionbench_lite.models.inputs import Inputs


@contextlib.contextmanager
def heads_evaluating(heads: Mapping[str, Any]) -> Iterator[None]:
    """Put the modules of all heads in evaluation mode for the length of the block; each gets its own mode back."""
    from fusionbench_lite.models.modes import evaluating

    found: dict[int, nn.Module] = {}
    for head in heads.values():
        for module in modules_in(head):
            found[id(module)] = module
    with contextlib.ExitStack() as stack:
        for module in found.values():
            stack.enter_context(evaluating(module))
        yield


def modules_in(function: Any, depth: int = 4) -> Iterator[nn.Module]:
    """Yield the modules that a callable is or holds: bound, in partial arguments, closures, defaults and globals it names."""
    if isinstance(function, torch.nn.Module):
        yield function
        return
    if depth == 0 or function is None or isinstance(function, (str, bytes, int, float, torch.Tensor)):
        return
    for held in _held(function):
        yield from modules_in(held, depth - 1)


def _held(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        named = [value.__globals__.get(name) for name in value.__code__.co_names]
        modules = [held for held in named if isinstance(held, torch.nn.Module)]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *modules]
    if hasattr(value, "func") and hasattr(value, "args") and hasattr(value, "keywords"):  # functools.partial
        return [value.func, *value.args, *value.keywords.values()]
    return list(vars(value).values()) if callable(value) and hasattr(value, "__dict__") and not isinstance(value, type) else []


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # of a name that is not set yet
        return False


def check_tasks(tasks: list[str], heads: Mapping[str, Callable[..., Any]], batches: Mapping[str, Iterable[Any]]) -> None:
    """Raise MergeError where a task has no head or no batches, or none that can be called or read."""
    for argument, mapping in (("heads", heads), ("batches", batches)):
        if not isinstance(mapping, Mapping):
            raise MergeError(f"{argument} must map task names, got {type(mapping).__name__}")
        for task in tasks:
            if task not in mapping:
                others = [name for name in mapping if name not in tasks]
                hint = did_you_mean(task, others) if others else f"give one entry for each of {', '.join(tasks)}"
                raise MergeError(f"{argument} lacks task {task!r}: {hint}")
    iterators: dict[int, str] = {}
    for task in tasks:
        if not callable(heads[task]):
            raise MergeError(f"task {task!r}: its head must be a module or function of features, got {type(heads[task]).__name__}")
        _check_batches(task, batches[task])
        if isinstance(batches[task], Iterator):
            first = iterators.setdefault(id(batches[task]), task)
            if first != task:
                raise MergeError(
                    f"tasks {first!r} and {task!r} have one iterator, from which each would take batches of the other: give each "
                    "task an iterator or a list of its own"
                )


def _check_batches(task: str, given: Any) -> None:
    kind = type(given).__name__
    if isinstance(given, torch.Tensor):
        raise MergeError(f"task {task!r}: its batches are one tensor {tuple(given.shape)}: give a list of batches, x.split(16)")
    if isinstance(given, Mapping):
        raise MergeError(f"task {task!r}: its batches are one {kind} of {', '.join(map(str, given))}: give a list of such batches")
    data = torch.utils.data
    if isinstance(given, data.Dataset) and not isinstance(given, data.IterableDataset):
        raise MergeError(f"task {task!r}: its batches are a data set of single examples, {kind}: give a DataLoader of it")
    if isinstance(given, (str, bytes)) or not (isinstance(given, Iterable) or hasattr(given, "__getitem__")):
        raise MergeError(f"task {task!r}: its batches must be an iterable of tensors, got {kind}")


def check_steps(steps: Any) -> int:
    """Return the number of steps. Raises MergeError where it is none."""
    try:
        number = -1 if isinstance(steps, bool) else operator.index(steps)
    except TypeError:
        number = -1
    if number < 0:
        raise MergeError(f"steps must be an integer of at least 0, got {steps!r}")
    return number


def inputs_of(task: str, step: int, given: Any) -> Inputs:
    """Return the inputs of a batch: a tensor, named tensors, or the one entry of a list, as data loaders of one tensor give.

    They take no gradient. Raises MergeError naming the task, the step, what came and the fix.
    """
    where = f"task {task!r}: the batch of step {step + 1}"
    if isinstance(given, (tuple, list)) and len(given) == 1:
        (given,) = given
    if isinstance(given, (tuple, list)) and len(given) > 1 and all(isinstance(part, torch.Tensor) for part in given):
        raise MergeError(
            f"{where} must be a tensor of examples (or named tensors of as many), got a {type(given).__name__} of {len(given)} "
            "tensors: leave labels out, (batch[0] for batch in loader), and name several inputs, {'input_ids': ids, ...}"
        )
    tensors = list(given.values()) if isinstance(given, Mapping) else [given]
    lengths = {len(t) if isinstance(t, torch.Tensor) and t.dim() else 0 for t in tensors}
    if lengths in (set(), {0}) or len(lengths) > 1 or 0 in lengths:
        what = [tuple(t.shape) if isinstance(t, torch.Tensor) else type(t).__name__ for t in tensors]
        raise MergeError(
            f"{where} must be a tensor of examples (or named tensors of as many), got {what[0] if len(what) == 1 else what}: "
            f"{_mended(tensors)}"
        )
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise MergeError(f"{where} has non-finite values; check the inputs")
    from fusionbench_lite.models.inputs import each, plain

    return each(plain, given)


def _mended(tensors: list[Any]) -> str:
    strange = [t for t in tensors if not isinstance(t, torch.Tensor)]
    if any(isinstance(t, (str, bytes)) or (isinstance(t, list) and t and isinstance(t[0], str)) for t in strange):
        return "turn text into token ids first"
    if strange:
        return "make tensors of it, torch.as_tensor(...)"
    return "leave empty batches out" if any(t.numel() == 0 for t in tensors) else "give each a first dimension of examples"
