"""State dicts behind files: safetensors read one tensor at a time, written shard by shard."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.lazy import torch
from fusionbench_lite.paths import expanded
from fusionbench_lite.weights.specs import StateDict, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

Source = "StateDict | str | os.PathLike[str]"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 256 << 20
_WRITTEN = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors|" + re.escape(INDEX))
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}


class SafetensorsWeights(Mapping[str, "Tensor"]):
    """The tensors of one safetensors file, or of a directory of shards; every access reads the tensor anew.

    A file is opened for one tensor and closed with it: pages of a mapping that stays open count as resident memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Path] = {}
        files, listed = _shards(path)
        for file in files:
            for name in _names(file):
                if name in self._files:
                    raise MergeError(f"{path}: {self._files[name].name} and {file.name} both hold {name!r}: give the path of one")
                self._files[name] = file
        for name, file in listed.items():
            if self._files.get(name) != file:
                raise MergeError(f"{path / INDEX} lists {name!r} in {file.name!r}, which does not hold it: fetch both again")

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import SafetensorError, safe_open

        file = self._files[name]
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _unreadable(file, error) from error
        return tensor

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype from the header of the file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._files[name], framework="pt") as opened:
                part = opened.get_slice(name)
                shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
        except (OSError, SafetensorError) as error:
            raise _unreadable(self._files[name], error) from error
        if dtype not in _DTYPES:
            raise MergeError(f"{self._files[name]}: {name!r} has dtype {dtype}, which no method here merges: convert it first")
        return TensorSpec(shape, getattr(torch, _DTYPES[dtype]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def open_weights(source: Any, pretrained: StateDict | None, who: str) -> StateDict:
    """Return the state dict behind a path: a safetensors file, a directory of them, or for experts a PEFT adapter.

    What is no path comes back as it is. `who` names the state dict in errors. Raises MergeError for what cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        return source  # type: ignore[no-any-return]
    path = expanded(source)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({_first_line(error)})"
        raise MergeError(
            f"{who}: {str(path)!r} {reason}: give a .safetensors file, a directory of them, or a state dict"
        ) from error
    if pretrained is not None:
        from fusionbench_lite.weights import lora

        if lora.is_adapter(path):
            return lora.read_adapter(path, pretrained)
    return SafetensorsWeights(path)


def open_experts(experts: Any, pretrained: StateDict) -> dict[str, StateDict]:
    """Return {task: state dict} with every path opened; raises MergeError for what is no mapping."""
    if not isinstance(experts, Mapping):
        raise MergeError(f"experts must map task names to state dicts, got {type(experts).__name__}")
    return {task: open_weights(weights, pretrained, f"expert {task!r}") for task, weights in experts.items()}


def _shards(path: Path) -> tuple[list[Path], dict[str, Path]]:
    """Return the files of a model, and the place of every tensor where an index tells."""
    if path.is_file():
        return [path], {}
    index = path / INDEX
    if not index.exists():
        shards = sorted(path.glob("*.safetensors"))
        if not shards:
            raise MergeError(f"{path} holds no .safetensors file; convert other formats first")
        return shards, {}
    try:
        places = dict(json.loads(index.read_text())["weight_map"].items())
        files = {name: path / name for name in places.values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _unreadable(index, error) from error
    for name, file in files.items():
        # By its name: in the cache of the Hugging Face hub the files are links to elsewhere.
        if name in ("", "..") or Path(name).name != name:
            raise MergeError(f"{index} lists {name!r} outside its own directory: the index is not to be trusted")
        if not file.exists():
            hint = did_you_mean(name, [shard.name for shard in path.glob("*.safetensors")])
            raise MergeError(f"{index} lists {name!r}, which is missing: {hint}")
    return list(files.values()), {tensor: files[name] for tensor, name in places.items()}


def _names(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> MergeError:
    return MergeError(f"cannot read {file}: {_first_line(error)}; it is incomplete or not a safetensors file: fetch it again")


def _first_line(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error).strip()
    return (text.splitlines() or [type(error).__name__])[0]


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
        raise OSError(_first_line(error)) from error


def checksum(salt: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a text and of names, types, shapes and values of tensors, in hexadecimal."""
    digest = hashlib.sha256(salt.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as they come into `folder`, in files of about `shard_bytes` with the index of the Hugging Face hub.

    At most one shard is held in memory. Call it within `atomic_directory`. Raises OSError.
    """
    shards: list[list[str]] = []
    total, size = 0, 0
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        nonlocal size, pending
        if pending:
            write_tensors(folder / f"{len(shards)}.part", pending, {"format": "pt"})
            shards.append(list(pending))
        size, pending = 0, {}

    for name, tensor in tensors:
        if size + tensor.nbytes > shard_bytes:
            flush()
        pending[name] = tensor.cpu().contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(files) == 1:
        files = ["model.safetensors"]
    for number, file in enumerate(files):
        (folder / f"{number}.part").rename(folder / file)
    if len(files) > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def check_replaceable(folder: Path, subfolders: Iterable[str] = ()) -> None:
    """Refuse to replace what is not an earlier result: a folder with anything but the files of `write_shards`.

    `subfolders` may be there as well, with the same files. Raises MergeError.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise MergeError(f"{folder} is a file: give the path of a directory")
    for entry in sorted(folder.iterdir()):
        if entry.name in subfolders and entry.is_dir():
            check_replaceable(entry)
        elif entry.is_dir() or not _WRITTEN.fullmatch(entry.name):
            raise MergeError(f"{folder} would be replaced, but holds {entry.name!r}: choose another directory or empty it")
