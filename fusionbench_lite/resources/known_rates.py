"""How fast this device is at what runs consist of, measured in half a second and remembered for a day.

In a process without torch the measuring happens in one of its own, so that a plan need not wait for torch where the rates of the
day are known.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file
from fusionbench_lite.resources.rates import Asked, Rates, cores

DAY = 24 * 3600.0


def rates(asked: Iterable[Asked], cache: Path) -> dict[Asked, Rates]:
    """Return the rates of a device for every product, measured where those of the last day are not in the cache.

    Raises InputError where the device is not there.
    """
    found = {one: _kept(_file(one, cache)) for one in asked}
    absent = tuple(one for one, known in found.items() if known is None)
    new = _measured(absent) if absent else {}
    for one, known in new.items():
        try:
            with atomic_file(_file(one, cache)) as temporary:
                temporary.write_text(json.dumps(dataclasses.asdict(known)) + "\n", encoding="utf-8")
        except InputError:  # a cache that cannot be written is no reason to plan nothing
            continue
    return {one: known or new[one] for one, known in found.items()}


def _file(asked: Asked, cache: Path) -> Path:
    """Return where rates are kept: those of other threads, or of another machine with the same cache, are others."""
    where = [dataclasses.asdict(asked), os.environ.get("OMP_NUM_THREADS", ""), cores(), os.uname().nodename]
    return cache / "rates" / f"{hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()[:12]}.json"


def _kept(path: Path) -> Rates | None:
    try:
        if time.time() - path.stat().st_mtime < DAY:
            return Rates(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    return None


@functools.lru_cache(maxsize=64)
def _measured(asked: tuple[Asked, ...]) -> Mapping[Asked, Rates]:
    if "torch" in sys.modules:
        from fusionbench_lite.resources import measuring

        return dict(zip(asked, measuring.measure(asked), strict=True))
    command = [sys.executable, "-m", "fusionbench_lite.resources.measuring", json.dumps([dataclasses.asdict(one) for one in asked])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        said = lines[-1].removeprefix("fusionbench_lite: ") if lines else f"exit status {done.returncode}"
        raise InputError(f"device={asked[0].device} could not be measured: {said}")
    return {one: Rates(**known) for one, known in zip(asked, json.loads(done.stdout), strict=True)}
