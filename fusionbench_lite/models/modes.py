"""Running a model as at evaluation, whatever mode its modules are in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from fusionbench_lite.models.inputs import Inputs


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode for the length of the block; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:  # not by eval(): some modules change their weights there, some refuse
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Callable[[Inputs], Tensor]:
    """Return the model as a function of its inputs with these weights in place of its own; they are read here, once.

    Inputs are a tensor, or named tensors, which the model takes as keyword arguments.
    """
    fixed = dict(weights)

    def encode(inputs: Inputs) -> Tensor:
        named = isinstance(inputs, Mapping)
        output: Tensor = torch.func.functional_call(model, fixed, () if named else (inputs,), dict(inputs) if named else {})
        return output

    return encode


def is_mixed(device: torch.device) -> bool:
    """Say whether mixed precision is on for this kind of device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def unmixed(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which products are in the precision of their tensors, inside mixed precision too."""
    return torch.autocast(device.type, enabled=False) if is_mixed(device) else contextlib.nullcontext()
