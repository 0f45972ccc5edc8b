"""What models read: one tensor of examples, or named tensors that a model takes as keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Inputs = Tensor | Mapping[str, Tensor]


def size_of(inputs: Inputs) -> int:
    """Return the number of examples."""
    return len(next(iter(inputs.values()))) if isinstance(inputs, Mapping) else len(inputs)


def each(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Return the inputs with a function applied to every tensor."""
    if isinstance(inputs, Mapping):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return function(inputs)


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor without its history, a copy where it was made in inference mode, when gradients could not read it."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.is_inference() else tensor


def part_of(inputs: Inputs, first: int, last: int) -> Inputs:
    """Return some of the examples in a row."""
    return each(lambda tensor: tensor[first:last], inputs)


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Return what a model makes of its inputs."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
