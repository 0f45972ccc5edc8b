"""Tensors that have no values of their own to merge: offloaded, sparse, quantised, complex and the like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import MergeError
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights import quantised

if TYPE_CHECKING:
    from torch import Tensor

_STORED = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2": "F8_E5M2", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
    "float4_e2m1fn_x2": "F4",
}
"""Types of elements and how safetensors writes them."""


def stored_as(dtype: torch.dtype) -> str:
    """Return how safetensors writes a type of elements."""
    return _STORED[str(dtype).removeprefix("torch.")]


def check_tensor(tensor: Any, who: str, name: Any) -> None:
    """Refuse a tensor that arithmetic would take for something else or fail at; only what describes it is read.

    `who` names the state dict. Raises MergeError naming the tensor, what it is and what to do about it.
    """
    if not isinstance(name, str):
        raise MergeError(f"{who}: the name {name!r} is a {type(name).__name__}, no text: pass model.state_dict() or a file")
    if not isinstance(tensor, torch.Tensor):
        fix = "pass model.state_dict() or a file"
        if name.rpartition(".")[2] == "_extra_state":  # torch's own name of what a module adds to its state, as fp8 layers do
            fix = "leave such entries, which are no weights, out of the pretrained model and the experts"
        raise MergeError(f"{who}: {name!r} must be a tensor, got {type(tensor).__name__}: {fix}")
    found = _unusable(tensor)
    if found is not None:
        raise MergeError(f"{who}: {name!r} {found[0]}: {found[1]}")


def check_stored(dtypes: Mapping[str, torch.dtype], who: str) -> None:
    """Refuse a model that is stored quantised; raises MergeError naming a tensor and how it is known."""
    quantised.check({name: _STORED.get(str(dtype).removeprefix("torch."), str(dtype)) for name, dtype in dtypes.items()}, who)


def _unusable(tensor: Tensor) -> tuple[str, str] | None:
    """Return what a tensor is and what to do about it, None for one whose values can be read."""
    kind = type(tensor)
    if torch.nn.parameter.is_lazy(tensor):
        return "is not initialised yet", "run the model on a batch first"
    if tensor.is_nested:
        return "is a nested tensor", "make it a plain one with .to_padded_tensor(0.0)"
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"is a {kind.__name__}, which is no plain tensor", _plain(kind)
    if tensor.is_meta:
        return (
            "is on the meta device: it is offloaded and its values are not here",
            "load the model without device_map, or with device_map='cpu', before taking its state_dict()",
        )
    if tensor.is_quantized:
        return f"({tensor.dtype}) is quantised", f"{quantised.FIX}, as with .dequantize()"
    if tensor.layout != torch.strided:
        return f"is not dense ({tensor.layout})", "make it dense with .to_dense()"
    if tensor.is_complex():
        return f"is complex ({tensor.dtype})", "make its parts real numbers with torch.view_as_real(tensor.resolve_conj())"
    if str(tensor.dtype).removeprefix("torch.") not in _STORED:
        return f"has dtype {tensor.dtype}, which no method merges", "convert it with .to(torch.float32)"
    if tensor.numel() and _end(tensor) > tensor.untyped_storage().nbytes():
        return "has no memory: its values are elsewhere", "gather the whole model before taking its state_dict()"
    return None


def _plain(kind: type[Any]) -> str:
    """Return how a plain tensor is had from one of this class."""
    if hasattr(kind, "full_tensor"):
        return "gather it with .full_tensor()"
    if kind.dequantize is not torch.Tensor.dequantize:
        return f"{quantised.FIX}, as with .dequantize()"
    return "pass plain tensors"


def _end(tensor: Tensor) -> int:
    """Return the bytes of storage up to the end of a tensor's last element."""
    steps = sum(int(side - 1) * int(stride) for side, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + steps + 1) * tensor.element_size()
