"""Which processes are at work with a cache folder, so that nothing they may still read is removed.

    <cache_dir>/at_work/<process>.lock    held by the process as long as it lives; written when it began

What a process has open stays readable after it was removed. What it has checked and not opened yet would be missing.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

FOLDER = "at_work"
_TRIES = 5
"""A process that looks for ended ones may take a new lock, and remove it, before the process that made it has it."""
_held: dict[Path, object] = {}


def register(cache: Path) -> None:
    """Say that this process works with a cache folder until it ends; nothing can be removed of one that cannot be written."""
    import filelock

    place = cache.absolute()
    if place in _held:
        return
    for _ in range(_TRIES):
        with contextlib.suppress(OSError):
            (place / FOLDER).mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(place / FOLDER / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.lock")
            lock.acquire(timeout=0)
            if Path(lock.lock_file).exists():
                _held[place] = lock
                return
            lock.release()


def since(cache: Path) -> float | None:
    """Return when the oldest of the other processes that are at work with a cache folder began, in seconds; None without one.

    What ended processes left is removed.
    """
    return min((began for began in _others(cache)), default=None)


def _others(cache: Path) -> Iterator[float]:
    import filelock

    folder = cache / FOLDER
    own = _held.get(cache.absolute())
    for path in sorted(folder.glob("*.lock")) if folder.is_dir() else ():
        if own is not None and path.absolute() == Path(own.lock_file):  # type: ignore[attr-defined]
            continue
        with contextlib.suppress(OSError):
            began = path.stat().st_mtime
            lock = filelock.FileLock(path)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                yield began
                continue
            path.unlink(missing_ok=True)
            lock.release()
