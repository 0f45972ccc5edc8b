"""The files of a model, laid out before any of its tensors is computed: the format's header needs names, shapes and dtypes alone.

A tensor is written to its place whenever it is finished, so no shard is held in memory, in whatever order tensors come.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fusionbench_lite.errors import WriteError
from fusionbench_lite.weights import kinds
from fusionbench_lite.weights.specs import TensorSpec
from fusionbench_lite.weights.stored.headers import headers
from fusionbench_lite.weights.stored.indexes import INDEX

SHARD_BYTES = 5_000_000_000
"""The largest file unless another size is asked for, as on the hub."""
CHUNK = 1 << 22
"""Bytes that are read at once to be compared."""
_ORDER = ("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64")
"""Types by alignment, in which the format's own library puts the widest first."""


class Place(NamedTuple):
    """Where a tensor lies: a file, its first byte there, and its number of bytes."""

    file: str
    start: int
    nbytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of a model. `headers`: what each begins with; `sizes` of the whole files; `places` by tensor."""

    headers: Mapping[str, bytes]
    sizes: Mapping[str, int]
    places: Mapping[str, Place]
    specs: Mapping[str, TensorSpec] = dataclasses.field(repr=False)

    @property
    def index(self) -> str | None:
        """The index of the hub, as text; None for a model in one file, which needs none."""
        if len(self.sizes) == 1:
            return None
        total = sum(spec.nbytes for spec in self.specs.values())
        weight_map = {name: self.places[name].file for name in self.specs}
        return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1) + "\n"

    @property
    def nbytes(self) -> int:
        """The bytes of all files."""
        return sum(self.sizes.values())

    def create(self, folder: Path) -> None:
        """Make the files that are not there, with their headers and at their full sizes. Raises OSError."""
        for name, header in self.headers.items():
            path = folder / name
            if path.exists() and path.stat().st_size == self.sizes[name]:
                continue
            with path.open("wb") as file:
                file.write(header)
                file.truncate(self.sizes[name])
        if self.index is not None:
            (folder / INDEX).write_text(self.index, encoding="utf-8")

    def verify(self, folder: Path, checksums: Mapping[str, int]) -> None:
        """Read the files back: sizes, headers as the format's own library reads them, and the checksum of every tensor.

        Raises WriteError naming the file or the tensor that is not what was written.
        """
        for name, size in self.sizes.items():
            path = folder / name
            if (found := path.stat().st_size) != size:
                raise _damaged(path, f"has {found} bytes, {size} were written")
            for tensor, stored in headers(path).items():
                spec = self.specs[tensor]
                if (stored.dtype, stored.shape) != (kinds.stored_as(spec.dtype), spec.shape):
                    raise _damaged(path, f"has {tensor!r} as {stored.dtype} {stored.shape}, not {spec.dtype} {spec.shape}")
        for tensor, expected in checksums.items():
            if (crc := self.checksum(folder, tensor)) != expected:
                path = folder / self.places[tensor].file
                raise _damaged(path, f"holds {tensor!r} with checksum {crc:08x}, {expected:08x} was written")

    def checksum(self, folder: Path, tensor: str) -> int:
        """Return the CRC-32 of a tensor's bytes in its file."""
        file, start, nbytes = self.places[tensor]
        crc = 0
        with (folder / file).open("rb", buffering=0) as opened:
            opened.seek(start)
            buffer = bytearray(min(CHUNK, nbytes))
            while nbytes:
                count = opened.readinto(memoryview(buffer)[: min(CHUNK, nbytes)])
                if not count:
                    break
                crc = zlib.crc32(memoryview(buffer)[:count], crc)
                nbytes -= count
        return crc


def _damaged(path: Path, what: str) -> WriteError:
    return WriteError(f"{path.name} {what}: the disk or the file system does not keep what is written: choose another directory")


def layout_of(specs: Mapping[str, TensorSpec], shard_bytes: int = SHARD_BYTES) -> Layout:
    """Return the layout of a model in files of at most `shard_bytes`, or of one tensor that is larger."""
    shards = list(_shards(specs, shard_bytes))
    count = len(shards)
    layout_headers, sizes = {}, {}
    places: dict[str, Place] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        names = sorted(names, key=lambda name: (-_ORDER.index(kinds.stored_as(specs[name].dtype)), name))
        header, starts = _header({name: specs[name] for name in names})
        layout_headers[file] = header
        sizes[file] = len(header) + sum(specs[name].nbytes for name in names)
        places |= {name: Place(file, len(header) + starts[name], specs[name].nbytes) for name in names}
    return Layout(headers=layout_headers, sizes=sizes, places=places, specs=specs)


def _shards(specs: Mapping[str, TensorSpec], shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, spec in specs.items():
        if names and size + spec.nbytes > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += spec.nbytes
    yield names


def _header(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """Return the header of a safetensors file, its length in front, and the first byte of every tensor behind it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, at = {}, 0
    for name, spec in specs.items():
        starts[name] = at
        entries[name] = {
            "dtype": kinds.stored_as(spec.dtype), "shape": list(spec.shape), "data_offsets": [at, at + spec.nbytes],
        }
        at += spec.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts
