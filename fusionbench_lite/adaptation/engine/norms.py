"""BatchNorm at merged statistics: torch has no gradient of its running mean and variance, which are merged like weights."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SIGNATURE = inspect.signature(nn.functional.batch_norm)


def differentiable(weights: Mapping[str, Tensor]) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which batch norms pass gradients on to statistics among the weights; of other models one of nothing."""
    wanted = torch.is_grad_enabled() and any(
        tensor.requires_grad and name.rpartition(".")[2] in ("running_mean", "running_var") for name, tensor in weights.items()
    )
    return _OfStatistics() if wanted else contextlib.nullcontext()


class _OfStatistics(TorchFunctionMode):
    """Computes batch norms of running statistics by their formula, in at least single precision as torch does."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.batch_norm:
            bound = _SIGNATURE.bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            if not bound.arguments["training"]:
                return _normed(**bound.arguments)
        return func(*args, **(kwargs or {}))


def _normed(
    input: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, **_: Any
) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * weight + bias of x [B, C, ...]."""
    exact = torch.promote_types(input.dtype, torch.float32)
    shape = (-1, *(1,) * (input.dim() - 2))
    scale = (running_var.to(exact) + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    output = (input.to(exact) - running_mean.view(shape)) * scale.view(shape)
    return (output if bias is None else output + bias.view(shape)).to(input.dtype)
