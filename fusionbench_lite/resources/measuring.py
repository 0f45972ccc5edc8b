"""`python -m fusionbench_lite.resources.measuring PRODUCTS`: the rates of a device, as JSON; see `rates`."""

from __future__ import annotations

import dataclasses
import io
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from fusionbench_lite.base.devices import device_of
from fusionbench_lite.planning.refusals import exit_status
from fusionbench_lite.resources.rates import Asked, Rates, cores
from fusionbench_lite.weights.costs import decomposition_flops
from fusionbench_lite.weights.linalg import top_singular

BUDGET = 0.12
"""Seconds of each measurement, after a first repetition that does not count."""
MATRIX = (1536, 384)
"""A matrix to be decomposed, of the form that perceptrons have: an eighth of the work of a base model's."""
NUMBERS = 1 << 22
"""Numbers of a sum: more than caches hold."""
PICTURE = (500, 375)
"""Pixels of a usual photograph of the data sets."""


def measure(asked: Sequence[Asked]) -> list[Rates]:
    """Return the rates for every product; what they have in common is measured once. Raises InputError for an absent device."""
    matrix = torch.randn(MATRIX, generator=torch.Generator().manual_seed(0))
    numbers, others, total = torch.ones((3, NUMBERS))
    common = {
        "decompositions": decomposition_flops(MATRIX) / _seconds(lambda: top_singular(matrix, MATRIX[1], "a sample")),
        "elements": NUMBERS / _seconds(lambda: torch.add(numbers, others, alpha=0.3, out=total)),
        "images": 1 / _seconds(_decoding()),
    }
    now = time.strftime("%Y-%m-%d %H:%M")
    return [_rates(one, device_of(one.device), common, now) for one in asked]


def _rates(asked: Asked, device: torch.device, common: dict[str, float], now: str) -> Rates:
    dtype = torch.bfloat16 if asked.precision == "bf16" else torch.float32
    states = torch.ones((asked.rows, asked.width), device=device, dtype=dtype)
    weights = torch.ones((asked.width, 4 * asked.width), device=device, dtype=dtype)

    def product() -> None:
        states @ weights
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return Rates(
        device=str(device), name=name, precision=asked.precision, rows=asked.rows, width=asked.width,
        flops=8 * asked.rows * asked.width**2 / _seconds(product), cores=cores(), measured=now, **common,
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
    """Return the median of the seconds that `run` takes."""
    run()
    times: list[float] = []
    while sum(times) < BUDGET or len(times) < 2:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> int:
    """Print the rates for the products that the command line lists."""
    found = measure([Asked(**one) for one in json.loads(sys.argv[1])])
    print(json.dumps([dataclasses.asdict(one) for one in found]))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
