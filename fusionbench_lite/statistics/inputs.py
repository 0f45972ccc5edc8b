"""What the statistics have in common: reading batches, and leaving the model as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.inputs import Inputs, part_of, size_of

_NAMES = ("x", "inputs", "images", "pixel_values")


def inputs_of(batches: Iterable[Any], examples: int | None, *, named: bool = False) -> Iterator[Inputs]:
    """Yield the inputs [B, …] of each batch, in order, until `examples` examples were yielded.

    A batch is a tensor, a tuple or list that starts with one, or a mapping with one under x, inputs, images or
    pixel_values (or with a single tensor); where `named`, mappings are all of a model's named inputs. The last batch is cut
    to reach `examples` exactly, and no batch after it is fetched; None takes all batches. Batches without examples are
    passed over. Raises MergeError: no examples, fewer than `examples`, or something that is no batch.
    """
    if examples is not None and (isinstance(examples, bool) or not isinstance(examples, int) or examples < 1):
        raise MergeError(f"examples must be an integer of at least 1 or None, got {examples!r}")
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise MergeError(f"batches must be an iterable of batches, got {type(batches).__name__}: pass x.split(32)")
    seen = 0
    for batch in batches:
        inputs: Inputs = batch if named and isinstance(batch, Mapping) else _inputs(batch)
        if examples is not None:
            inputs = part_of(inputs, 0, examples - seen)
        if size := size_of(inputs):
            seen += size
            yield inputs
        if seen == examples:
            return
    if not seen:
        raise MergeError("batches holds no examples: the statistics need at least one")
    if examples is not None:
        raise MergeError(f"examples is {examples}, but the batches hold only {seen}: give more, or a smaller number")


def _inputs(batch: Any) -> Tensor:
    inputs = batch
    if isinstance(batch, (tuple, list)) and batch:
        inputs = batch[0]
    elif isinstance(batch, Mapping):
        tensors = [value for value in batch.values() if isinstance(value, Tensor)]
        named = [batch[name] for name in _NAMES if name in batch]
        if not named and len(tensors) != 1:
            raise MergeError(
                f"a batch has the entries {', '.join(map(str, batch))}: name the inputs {' or '.join(_NAMES)}, or yield "
                "one tensor and wrap the model"
            )
        inputs = (named or tensors)[0]
    if not isinstance(inputs, Tensor) or inputs.dim() == 0:
        what = f"{type(inputs).__name__}" if not isinstance(inputs, Tensor) else "a tensor without dimensions"
        raise MergeError(f"a batch must be a tensor of examples, a tuple that starts with one, or a mapping, got {what}")
    return inputs
