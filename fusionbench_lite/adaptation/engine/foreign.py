"""What modules of users return and raise, in one line that names the module, what came and the fix."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.models.inputs import Inputs, size_of


@contextmanager
def running(model: nn.Module, inputs: Inputs, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Turn what a model raises about its inputs into a MergeError; memory that runs out stays what it is."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise MergeError(
            f"{type(model).__name__} does not run on {_told(inputs)}: {first_line(error)}; "
            f"{_fix(model, inputs, list(weights.values()), error)}"
        ) from error


def features_of(output: Any, model: nn.Module, inputs: Inputs) -> Tensor:
    """Return a model's output where it is a tensor with a row for each example. Raises MergeError where it is not.

    A model that is `answering`, while it is judged, returns ids in place of features.
    """
    size = size_of(inputs)
    if not isinstance(output, Tensor):
        what, entry = _structure(output)
        raise MergeError(
            f"{type(model).__name__} returns {what}, features [{size}, d] are needed: "
            f"give a subclass whose forward returns {entry.format('super().forward(...)')}"
        )
    fits = output.is_floating_point() or getattr(model, "answering", False)
    if not fits or not output.dim() or len(output) != size:
        raise MergeError(
            f"{type(model).__name__} returns {tuple(output.shape)} of {output.dtype} for {size} examples: "
            f"let it return features [{size}, d] of a floating-point dtype"
        )
    return output


def logits_of(output: Any, task: str, features: Tensor) -> Tensor:
    """Return a head's output where it is logits [B, C]. Raises MergeError where it is not."""
    if not isinstance(output, Tensor):
        what, entry = _structure(output)
        raise MergeError(
            f"task {task!r}: its head returns {what}, logits [{len(features)}, C] are needed: "
            f"give lambda features: {entry.format('head(features)')}"
        )
    if not output.is_floating_point() or output.dim() != 2 or len(output) != len(features):
        raise MergeError(
            f"task {task!r}: its head returns {tuple(output.shape)} of {output.dtype} for features {tuple(features.shape)}: "
            f"let it return logits [{len(features)}, C] of a floating-point dtype"
        )
    return output


def head_error(task: str, head: Any, features: Tensor, error: Exception) -> MergeError:
    """Return the error of a head that does not run on features."""
    tensors = [*head.parameters(), *head.buffers()] if isinstance(head, nn.Module) else []
    fix = "give a head for such features"
    if any(t.is_inference() for t in tensors):
        fix = "it was made in inference mode: give copy.deepcopy(head), made outside it"
    odd = next((t for t in tensors if t.is_floating_point() and t.dtype != features.dtype), None)
    away = next((t for t in tensors if t.device != features.device), None)
    if away is not None:
        fix = f"move it: head.to({str(features.device)!r})"
    elif odd is not None:
        fix = f"it is in {odd.dtype}: convert it, head.to({features.dtype})"
    return MergeError(
        f"task {task!r}: its head does not run on features {tuple(features.shape)} of {features.dtype}: {first_line(error)}; {fix}"
    )


def first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no text')[:200].rstrip('.')}"


def _structure(output: Any) -> tuple[str, str]:
    """Return what an output is, and a pattern of how to take an entry from what returns it."""
    kind = type(output).__name__
    if isinstance(output, Mapping):
        keys = list(output)
        wanted = [key for key in ("pooler_output", "image_embeds", "logits", "last_hidden_state") if key in keys]
        entry = next(iter(wanted or keys), "features")
        return f"a {kind} with {', '.join(map(str, keys))}", f"{{}}[{entry!r}]"
    if isinstance(output, (tuple, list)):
        return f"a {kind} of {len(output)}", "{}[0]"
    return f"an object of {kind}", "the tensor of {}"


def _told(inputs: Inputs) -> str:
    """Return shapes, dtypes, and the range of whole numbers."""
    parts = []
    for name, tensor in inputs.items() if isinstance(inputs, Mapping) else [("inputs", inputs)]:
        whole = not tensor.is_floating_point() and tensor.dtype != torch.bool and tensor.numel()
        span = f" from {int(tensor.min())} to {int(tensor.max())}" if whole else ""
        parts.append(f"{name} {tuple(tensor.shape)} of {tensor.dtype}{span}")
    return ", ".join(parts)


def _fix(model: nn.Module, inputs: Inputs, weights: Iterable[Tensor], error: Exception) -> str:
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        return "it was made in inference mode: give copy.deepcopy(model), made outside it"
    tensors = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
    taken = _taken(model)
    strange = [name for name in tensors if taken is not None and name and name not in taken]
    if strange:
        return f"its forward takes {', '.join(taken or ())}: take {', '.join(map(repr, strange))} out of the batches"
    rows = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    ids = [t for t in tensors.values() if not t.is_floating_point() and t.numel() and t.dtype != torch.bool]
    if rows and isinstance(error, IndexError) and any(int(t.max()) >= min(rows) or int(t.min()) < 0 for t in ids):
        return f"its embeddings have {', '.join(map(str, sorted(set(rows))))} rows: give ids below, from the model's own tokeniser"
    kinds = sorted({str(w.dtype) for w in weights if w.is_floating_point()})
    values = sorted({str(t.dtype) for t in tensors.values() if t.is_floating_point() or not rows})
    if kinds and values and not set(values) <= set(kinds):
        return f"the weights are in {', '.join(kinds)}: give inputs in it, x.to({kinds[0]})"
    return "give inputs that the model runs on"


def _taken(model: nn.Module) -> list[str] | None:
    """Return the names that a model's forward takes, None where it takes any."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
