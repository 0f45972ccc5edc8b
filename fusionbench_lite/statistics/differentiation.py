"""What statistics of gradients have in common: which tensors they are of, and the model's predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.inputs import Inputs, call, size_of


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """Return every floating-point parameter of the model, frozen ones too, tied ones once."""
    tensors = model.state_dict(keep_vars=True).values()
    return list({id(t): t for t in tensors if isinstance(t, nn.Parameter) and t.is_floating_point()}.values())


def by_name(
    model: nn.Module, parameters: Sequence[Tensor], values: Sequence[Tensor], what: str
) -> dict[str, Tensor]:
    """Return the values of parameters by every floating-point name of the state dict, float32; zeros for buffers.

    Raises MergeError naming the tensor whose values are not finite.
    """
    found = {id(p): value.float() for p, value in zip(parameters, values, strict=True)}
    result = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            result[name] = found[id(tensor)] if id(tensor) in found else torch.zeros_like(tensor, dtype=torch.float32)
            if not bool(torch.isfinite(result[name]).all()):
                raise MergeError(f"{what} of {name!r} is not finite: check the checkpoint and the inputs")
    return result


def log_probabilities(model: nn.Module, logits: Callable[[Tensor], Tensor], inputs: Inputs, what: str) -> Tensor:
    """Return log p [B, C] in float32 or float64; raises MergeError where they are none of `what`."""
    values, count = logits(call(model, inputs)), size_of(inputs)
    if not isinstance(values, Tensor) or values.dim() != 2 or len(values) != count:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise MergeError(f"logits must give [{count}, classes] for a batch of {count}, got {got}")
    if values.shape[1] < 2:
        raise MergeError(f"{what} needs at least 2 classes, the logits have {values.shape[1]}")
    broken = int((~torch.isfinite(values)).sum())
    if broken:
        raise MergeError(f"{broken} of {values.numel()} logits are not finite: check the checkpoint and the inputs")
    if not values.requires_grad:
        raise MergeError("the logits do not depend on the model's parameters: call neither detach nor no_grad in it")
    return torch.log_softmax(values.to(at_least_float32(values)), dim=-1)


def at_least_float32(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which gradients are added up."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@contextlib.contextmanager
def differentiable(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let gradients reach all parameters for the length of the block."""
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
