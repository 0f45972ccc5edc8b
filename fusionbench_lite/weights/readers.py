"""State dicts behind files: safetensors read one tensor at a time, and written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import MergeError, MergeWarning
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.specs import StateDict, TensorSpec
from fusionbench_lite.weights.stored.contents import first_line
from fusionbench_lite.weights.stored.folders import WeightsFolder, describe
from fusionbench_lite.weights.stored.headers import offsets, unreadable

if TYPE_CHECKING:
    from torch import Tensor

Source = "StateDict | str | os.PathLike[str]"
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}


class SafetensorsWeights(Mapping[str, "Tensor"]):
    """The tensors of one safetensors file, or of a directory of shards; every access reads the tensor anew.

    A file is opened for one tensor and closed with it: pages of a mapping that stays open count as resident memory. What is
    read of a directory is what `folders.describe` says. Raises MergeError for what is no model.
    """

    def __init__(self, source: Path | WeightsFolder) -> None:
        found = source if isinstance(source, WeightsFolder) else describe(source, adapters=False).checked()
        self.path, self._stored = found.path, found.tensors
        self._offsets: dict[Path, dict[str, tuple[int, int]]] = {}

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import SafetensorError, safe_open

        file = self._stored[name].file
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise unreadable(file, error) from error
        return tensor

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype as the header of the file gave them."""
        file, dtype, shape = self._stored[name]
        if dtype not in _DTYPES:
            raise MergeError(f"{file}: {name!r} has dtype {dtype}, which no method here merges: convert it first")
        return TensorSpec(shape, getattr(torch, _DTYPES[dtype]))

    def read_ahead(self, name: str) -> None:
        """Ask the system to have a tensor in its cache soon; it may decline, and no memory of this process is taken."""
        if not hasattr(os, "posix_fadvise"):
            return
        file = self._stored[name].file
        # What is wrong with a file is told when the tensor is read.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), file.open("rb", buffering=0) as opened:
            if file not in self._offsets:
                self._offsets[file] = offsets(opened)
            start, end = self._offsets[file][name]
            os.posix_fadvise(opened.fileno(), start, end - start, os.POSIX_FADV_WILLNEED)

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # that of Mapping reads the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def open_weights(source: Any, pretrained: StateDict | None, who: str) -> StateDict:
    """Return the state dict behind a path: a safetensors file, a directory of them, or for experts a PEFT adapter.

    What is no path comes back as it is. `who` names the state dict in errors. Raises MergeError for what cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        return source  # type: ignore[no-any-return]
    found = describe(source, adapters=pretrained is not None).checked(who)
    if found.warning is not None:
        warnings.warn(f"{who}: {found.warning}", MergeWarning, stacklevel=2)
    if found.kind == "adapter" and pretrained is not None:
        from fusionbench_lite.weights import lora

        return lora.read_adapter(found.folder, pretrained)
    return SafetensorsWeights(found)


def open_experts(experts: Any, pretrained: StateDict) -> dict[str, StateDict]:
    """Return {task: state dict} with every path opened; raises MergeError for what is no mapping."""
    if not isinstance(experts, Mapping):
        raise MergeError(f"experts must map task names to state dicts, got {type(experts).__name__}")
    return {task: open_weights(weights, pretrained, f"expert {task!r}") for task, weights in experts.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; names that share memory are written one by one. Raises OSError as any writing does."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in seen else tensor.contiguous()
        seen.add(storage)
    try:
        save_file(apart, path, metadata=metadata)
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))  # so that what helps can be said
        raise (OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(first_line(error))) from error


def checksum(salt: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a text and of names, types, shapes and values of tensors, in hexadecimal."""
    digest = hashlib.sha256(salt.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
