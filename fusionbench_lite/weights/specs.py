"""Names, shapes and dtypes of state dicts, compared without reading the values of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights import kinds

if TYPE_CHECKING:
    from torch import Tensor

StateDict = Mapping[str, "Tensor"]


class TensorSpec(NamedTuple):
    """What is known of a tensor before its values are read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """The number of elements."""
        total = 1
        for side in self.shape:
            total *= side
        return total

    @property
    def nbytes(self) -> int:
        """The size in memory and in a file."""
        return self.numel * self.dtype.itemsize


def work_dtype(stored: torch.dtype) -> torch.dtype:
    """Return the dtype in which a tensor of this dtype is merged: float64 for float64, else float32."""
    return torch.float64 if stored == torch.float64 else torch.float32


def spec_of(weights: StateDict, name: str) -> TensorSpec:
    """Return the shape and dtype of one tensor, unchecked; mappings that read files know theirs without reading."""
    declared = getattr(weights, "spec", None)
    if callable(declared):
        known: TensorSpec = declared(name)
        return known
    tensor = weights[name]
    return TensorSpec(tuple(tensor.shape), tensor.dtype)


def specs_of(weights: StateDict, who: str) -> dict[str, TensorSpec]:
    """Return the shape and dtype of every tensor; mappings that read files know theirs (`spec(name)`) without reading.

    `who` names the state dict in the error. Raises MergeError for what is no mapping of names to tensors, and for tensors
    whose values cannot be merged (see `kinds`), such as offloaded and quantised ones.
    """
    if not isinstance(weights, Mapping):
        raise MergeError(f"{who} must be a state dict, got {type(weights).__name__}")
    declared = getattr(weights, "spec", None)
    specs = {}
    for name in weights:
        if callable(declared):
            specs[name] = declared(name)
            continue
        tensor = weights[name]
        kinds.check_tensor(tensor, who, name)
        specs[name] = TensorSpec(tuple(tensor.shape), tensor.dtype)
    kinds.check_stored({name: spec.dtype for name, spec in specs.items()}, who)
    return specs


def check_same(pretrained: Mapping[str, TensorSpec], who: str, weights: Mapping[str, TensorSpec]) -> None:
    """Compare weights with the pretrained model; raises MergeError for missing or extra keys, shapes and dtypes.

    `who` names the weights in the error.
    """
    counts = f"({len(weights)} keys against {len(pretrained)})"
    for name in pretrained:
        if name not in weights:
            hint = did_you_mean(name, [key for key in weights if key not in pretrained])
            raise MergeError(f"{who} lacks key {name!r} of the pretrained model {counts}: {hint}")
    for name in weights:
        if name not in pretrained:
            raise MergeError(
                f"{who} has key {name!r} that the pretrained model lacks {counts}: remove it, or use the pretrained model "
                "that it was made from"
            )
    for name, base in pretrained.items():
        spec = weights[name]
        if spec.shape != base.shape:
            raise MergeError(
                f"{who}: {name!r} has shape {spec.shape}, the pretrained model {base.shape}; "
                "was it fine-tuned from another backbone?"
            )
        if spec.dtype != base.dtype:
            raise MergeError(
                f"{who}: {name!r} has dtype {spec.dtype}, the pretrained model {base.dtype}; "
                f"convert it with .to({base.dtype})"
            )


def tied_names(pretrained: StateDict, experts: Mapping[str, StateDict]) -> dict[str, str]:
    """Return {name: first name of the same storage} for tensors listed more than once, as T5's embeddings are.

    A tie counts where every expert has it too, in storage or in value. Mappings that read files have none: the
    format stores a shared tensor once.
    """
    if callable(getattr(pretrained, "spec", None)):
        return {}
    first: dict[tuple[object, ...], str] = {}
    tied = {}
    for name, tensor in pretrained.items():
        if tensor.numel() == 0:
            continue
        key = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        original = first.setdefault(key, name)
        if original != name and all(_same(weights[original], weights[name]) for weights in experts.values()):
            tied[name] = original
    return tied


def _same(first: Tensor, second: Tensor) -> bool:
    return (first.data_ptr() == second.data_ptr() and first.stride() == second.stride()) or torch.equal(first, second)
