"""Tensors that are computed once: one file per key, verified at every reading."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fusionbench_lite.paths import atomic_file, locked
from fusionbench_lite.weights.readers import checksum, write_tensors

log = logging.getLogger(__name__)


def cached(folder: Path, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors that `compute` gives for this key, on the CPU, computing them only once.

    They lie in `folder` in one safetensors file, named by the SHA-256 of the key as JSON. Its metadata holds the key
    and a SHA-256 of key, names, types, shapes and values; an entry that does not agree is computed again. Of two
    processes that need the same entry the second waits and reads. Raises InputError when the folder cannot be written;
    an error of `compute` leaves no entry.
    """
    text = json.dumps(key, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
    content = _read(path, text) if path.exists() else None  # first without the lock: a complete cache may be read-only
    if content is not None:
        return content
    with locked(path.with_suffix(".lock")):
        if path.exists():
            content = _read(path, text)
            if content is not None:
                return content
            log.warning("%s is damaged: computing it again", path)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in compute().items()}
        with atomic_file(path) as temporary:
            write_tensors(temporary, tensors, {"key": text, "sha256": checksum(text, tensors)})
        return tensors


def _read(path: Path, text: str) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError):
        return None
    sound = metadata.get("key") == text and metadata.get("sha256") == checksum(text, tensors)
    return tensors if sound else None
