"""What a safetensors file holds: names, types and shapes, without values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fusionbench_lite.errors import MergeError
from fusionbench_lite.weights.stored.contents import fault_of, first_line

LONGEST = 100_000_000
"""Bytes of a header at most, as the format has it."""


class Stored(NamedTuple):
    """Where a tensor lies, its dtype as the format spells it, and its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def headers(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file, read from its header. Raises MergeError where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    if fault := fault_of(file):
        raise MergeError(f"cannot read {file}: {fault}")
    try:
        with safe_open(file, framework="pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            return {name: Stored(file, str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}
    except (OSError, SafetensorError) as error:
        raise unreadable(file, error) from error


def header_of(file: BinaryIO) -> bytes:
    """Return what a safetensors file begins with: eight bytes of length and as much JSON. Raises OSError and ValueError."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > LONGEST:
        raise ValueError("no header of safetensors")
    return start + file.read(length)


def offsets(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Return the first byte of every tensor in an open file and the one behind its last."""
    header = header_of(file)
    entries = json.loads(header[8:])
    places = {name: entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__"}
    return {name: (len(header) + start, len(header) + end) for name, (start, end) in places.items()}


def unreadable(file: Path, error: Exception) -> MergeError:
    """Return the error of a file that was no longer, or never, readable as safetensors."""
    fault = fault_of(file) or f"{first_line(error)}; it is incomplete or not a safetensors file: fetch it again"
    return MergeError(f"cannot read {file}: {fault}")
