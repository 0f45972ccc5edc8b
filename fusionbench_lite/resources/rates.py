"""How fast this device is, measured in half a second and remembered for a day.

The measuring happens in a process of its own, `python -m fusionbench_lite.resources.measuring`, so that a plan need not wait for
torch where the rates of the day are known.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file

DAY = 24 * 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """`device` and its `name`; operations per second of a product of square matrices of `side`, in `precision`; images decoded
    and resized per second by one core, of which a run uses `cores`."""

    device: str
    name: str
    precision: str
    side: int
    flops: float
    images: float
    cores: int

    @property
    def decoding(self) -> float:
        """Images decoded per second by all cores."""
        return self.images * self.cores

    def __str__(self) -> str:
        return (
            f"{self.device} ({self.name}): {self.flops / 1e12:.3g} TFLOP/s in a product of matrices of {self.side:,}, "
            f"{self.precision}; {self.images:,.0f} images of 500 x 375 pixels decoded a second on each of {self.cores} cores"
        )


def rates(device: str, precision: str, cache: Path) -> Rates:
    """Return the rates of a device, measured where those of the last day are not in the cache. Raises InputError where the device
    is not there."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    name = hashlib.sha256(json.dumps([device, precision, threads, os.cpu_count(), os.uname().nodename]).encode()).hexdigest()[:12]
    path = cache / "rates" / f"{name}.json"
    try:
        if time.time() - path.stat().st_mtime < DAY:
            return Rates(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    found = _measured(device, precision)
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(found)) + "\n", encoding="utf-8")
    except InputError:  # a cache that cannot be written is no reason to plan nothing
        pass
    return found


def _measured(device: str, precision: str) -> Rates:
    command = [sys.executable, "-m", "fusionbench_lite.resources.measuring", device, precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise InputError(f"device={device} could not be measured: {lines[-1] if lines else f'exit status {done.returncode}'}")
    return Rates(**json.loads(done.stdout))
