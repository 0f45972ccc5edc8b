"""Whether converted files hold what was written into them, seen from all their bytes.

A file whose content changed while its size, dates and number stayed, as damage to a disk does it, is found by its checksum alone.
Every converted file that a run uses is compared with it before anything is computed, several at a time; once per process for
as long as the file stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from fusionbench_lite.base.file_hashes import state_of
from fusionbench_lite.checkpoints.api import Report
from fusionbench_lite.errors import InputError

log = logging.getLogger(__name__)
T = TypeVar("T")

_PIECE = 1 << 20
"""Bytes that are read and hashed at a time; they stay in the processor's cache between the two."""
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ROUNDS = 3
"""A damaged file that others are compared with comes first, then those, then what was made of them is looked at."""
_seen: dict[Path, tuple[str, bool]] = {}
"""The state of every file that this process has hashed or written, and whether it was sound."""


class Damaged(InputError):
    """Converted files whose content is not what was written."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        self.files = f"{paths[0]}{more}"
        super().__init__(f"{self.files} does not hold what was written there: the disk may be damaged")


def seen(path: Path) -> bool | None:
    """Whether a file was sound when this process hashed or wrote it; None where it has not, or the file changed since."""
    with contextlib.suppress(OSError):
        state, sound = _seen.get(path, ("", False))
        return sound if state == state_of(path) else None
    return None


def note(path: Path, sound: bool = True) -> None:
    """Remember for this process whether a file, as it is now, is sound."""
    with contextlib.suppress(OSError):
        _seen[path] = state_of(path), sound


def is_sound(path: Path, salt: str, expected: str | None) -> bool:
    """Hash a file, and say whether salt, names, shapes and values give the expected checksum (that of `weights.readers`)."""
    try:
        before = state_of(path)
        with path.open("rb") as file:
            sound = _checksum(file, salt) == expected
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return False
    _seen[path] = before, sound
    return sound


def check(files: Mapping[Path, tuple[str, str | None]], report: Report | None = None) -> None:
    """Hash the files that this process has not, given with salt and expected checksum. Raises Damaged."""
    new = [path for path in files if seen(path) is None]
    threads = min(len(new), _processors())
    if threads:
        with ThreadPoolExecutor(threads, "checksums") as pool:
            running = [pool.submit(is_sound, path, *files[path]) for path in sorted(new, key=_size, reverse=True)]
            for done, _ in enumerate(as_completed(running), 1):
                if report is not None:
                    report("checking converted files", done, len(new))
    # A file whose dates changed while it was hashed, by a backup or a link, is hashed once more and then believed.
    damaged = [path for path in files if not seen(path) and (seen(path) is False or not is_sound(path, *files[path]))]
    if damaged:
        raise Damaged(damaged)


def until_sound(look: Callable[[], T]) -> T:
    """Return what `look` finds; where it raises Damaged, it is called again, to make the files anew from their sources.

    Raises InputError naming the damaged file where that cannot be done.
    """
    damage: Damaged | None = None
    for _ in range(_ROUNDS):
        try:
            return look()
        except Damaged as error:
            log.warning("%s: it is made again from its source", error)
            damage = error
        except InputError as error:
            if damage is None or not any(seen(path) is False for path in damage.paths):  # made again: this is another matter
                raise
            raise InputError(f"{damage.files} is damaged and cannot be made again: {error}") from error
    assert damage is not None
    raise damage


def _checksum(file: BufferedReader, salt: str) -> str:
    """Return what `weights.readers.checksum` gives for the tensors of a safetensors file, without holding one in memory."""
    length = int.from_bytes(file.read(8), "little")
    header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    digest, piece = hashlib.sha256(salt.encode()), memoryview(bytearray(_PIECE))
    for name, entry in sorted(header.items()):
        digest.update(repr((name, f"torch.{_DTYPES[entry['dtype']]}", tuple(entry["shape"]))).encode())
        start, end = entry["data_offsets"]
        file.seek(8 + length + start)
        for count in _counts(end - start):
            if file.readinto(piece[:count]) != count:
                raise ValueError("the file is shorter than it says")
            digest.update(piece[:count])
    return digest.hexdigest()


def _counts(nbytes: int) -> Iterable[int]:
    return (min(_PIECE, nbytes - first) for first in range(0, nbytes, _PIECE))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
