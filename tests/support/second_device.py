"""A second device for machines that have none: tensors that say they are on "meta" and hold their values all the same.

As on a GPU, an operation on tensors of both devices is an error, unless it copies or the other tensor is one number. Tensors
come here by `.to("meta")`, and are made here with `device="meta"`, while `Machine` is entered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
COPIES = ("aten::copy_", "aten::_to_copy")


class Elsewhere(torch.Tensor):
    """A tensor of the second device around one in the processor's memory."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner!r})"


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation where its tensors are."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim() > 0]
    name = function._schema.name
    if there and here and name not in COPIES:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    asked = kwargs.get("device")
    wanted = torch.device(asked) == DEVICE if asked is not None else bool(there) and name != "aten::_local_scalar_dense"
    args, kwargs = tree_map_only(Elsewhere, lambda tensor: tensor.inner, (args, kwargs))
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = function(*args, **kwargs)
    own = {id(tensor.inner): tensor for tensor in there}
    if name == "aten::copy_":
        return own.get(id(result), result)
    if not wanted:
        return result
    return tree_map_only(torch.Tensor, lambda tensor: own[id(tensor)] if id(tensor) in own else Elsewhere(tensor), result)


class Machine(TorchDispatchMode):
    """While entered, `device="meta"` is the second device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a tensor of either device."""
    return tensor.inner if isinstance(tensor, Elsewhere) else tensor
