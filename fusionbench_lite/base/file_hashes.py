"""Hashes of files that are kept until the file system says that a file may have changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file, file_sha256

GRAIN = 2_000_000_000
"""Nanoseconds between time stamps of the coarsest file systems: a file may change within them and keep its times."""


def state_of(path: Path) -> str:
    """Return what of a file changes when its content does: size, both times of change and the number of the file.

    Files of one size and date, as archives unpack them, differ in the time of change of the entry (ctime) and in the
    number, also when one takes the other's place. Damage to the disk changes none of these. Raises OSError.
    """
    return _state(path.stat())


def remembered(path: Path, cache: Path) -> str:
    """Return the SHA-256 of a file, which is computed again when its state is another than before.

    What is computed is noted in the cache folder, unless the file changed so shortly before that it may change once more
    without a trace. Raises OSError where the file cannot be read.
    """
    note = cache / "checkpoints" / "hashes" / hashlib.sha256(str(path.absolute()).encode()).hexdigest()
    status, now = path.stat(), time.time_ns()
    with contextlib.suppress(OSError, ValueError):
        sha256, before = note.read_text().split("\n")[:2]
        if before == _state(status) and len(sha256) == 64:
            return sha256
    sha256 = file_sha256(path)
    if status.st_ctime_ns < now - GRAIN:  # every write moves it, whatever date the file was given
        with contextlib.suppress(InputError), atomic_file(note) as temporary:  # without a note, a hash per run and no more
            temporary.write_text(f"{sha256}\n{_state(status)}\n")
    return sha256


def _state(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
