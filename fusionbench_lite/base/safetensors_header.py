"""The header of a safetensors file, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

METADATA = "__metadata__"


def header_of(path: Path) -> dict[str, Any] | None:
    """Return the header of a safetensors file of full length, its tensors by name beside METADATA; None for any other file."""
    try:
        with path.open("rb") as file:
            return header_in(file, path.stat().st_size)
    except OSError:
        return None


def header_in(file: IO[bytes], size: int) -> dict[str, Any] | None:
    """Return the header of an open file of so many bytes, as `header_of`."""
    try:
        length = int.from_bytes(file.read(8), "little")
        if length > size:
            return None
        header: dict[str, Any] = json.loads(file.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != METADATA), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    return header if size == 8 + length + end else None
