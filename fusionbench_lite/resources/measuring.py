"""`python -m fusionbench_lite.resources.measuring DEVICE PRECISION`: the rates of a device, as JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from fusionbench_lite.base.devices import device_of
from fusionbench_lite.resources.rates import Rates

BUDGET = 0.25
"""Seconds of each measurement."""
SIDES = {"cpu": 1024, "cuda": 4096}
PICTURE = (500, 375)
"""Pixels of a usual photograph of the data sets."""


def measure(device: torch.device, precision: str) -> Rates:
    """Return the rates of a device: medians of what fits into the budget, after a first repetition that does not count."""
    side = SIDES[device.type]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = torch.randn((2, side, side), device=device, dtype=dtype)

    def product() -> None:
        one @ other
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Rates(
        device=str(device), name=name, precision=precision, side=side, flops=2 * side**3 / _seconds(product),
        images=1 / _seconds(_decoding()), cores=cores,
    )


def _decoding() -> Callable[[], object]:
    """Return a function that decodes a photograph's worth of JPEG and brings it to 224 x 224."""
    grey = np.random.default_rng(0).integers(0, 256, (PICTURE[1] // 8, PICTURE[0] // 8, 3), dtype=np.uint8)
    stored = io.BytesIO()
    Image.fromarray(grey).resize(PICTURE, Image.Resampling.BICUBIC).save(stored, "JPEG", quality=90)

    def decode() -> object:
        picture = Image.open(io.BytesIO(stored.getvalue())).convert("RGB")
        return np.asarray(picture.resize((299, 224), Image.Resampling.BICUBIC).crop((37, 0, 261, 224)))

    return decode


def _seconds(run: Callable[[], object]) -> float:
    run()
    times: list[float] = []
    while sum(times) < BUDGET or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    try:
        found = measure(device_of(sys.argv[1]), sys.argv[2])
    except ValueError as error:
        sys.exit(str(error))
    print(json.dumps(dataclasses.asdict(found)))
