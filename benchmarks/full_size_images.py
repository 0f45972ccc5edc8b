"""The cache of decoded images: rows per second written, from JPEG files, and read."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fusionbench_lite.data import TaskData, vision

TASK, CLASSES = "eurosat", 10
"""A task whose class folders are filled with drawn images."""

SIDES, QUALITY = (500, 375), 90
READ_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class ImagesJob:
    """So many JPEG files, decoded in so many threads, below a folder."""

    count: int
    threads: int
    folder: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Images per second decoded and written to the cache, read for the first time in a process (checksums are compared), and
    read again; `nbytes` of the files, `cached` of their squares."""

    count: int
    written: float
    first: float
    again: float
    nbytes: int
    cached: int


def measure_images(job: ImagesJob) -> Rates:
    """Measure in this process, which from then on has as many processors as there are threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    job.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.folder) as name:
        nbytes = write(Path(name) / "data" / TASK / "test", job.count)
        start = time.perf_counter()
        _load(Path(name))
        written = time.perf_counter() - start
        found = _load(Path(name))
        first, again = _read(found), _read(found)
        return Rates(
            count=len(found.test_images), written=job.count / written, first=job.count / first, again=job.count / again,
            nbytes=nbytes, cached=int(np.prod(found.test_images.shape)),
        )


def write(folder: Path, count: int) -> int:
    """Write drawn images, smooth shapes under some grain, into class folders; return their bytes."""
    generator, total = np.random.default_rng(0), 0
    for number in range(count):
        path = folder / f"class {number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8)).resize(SIDES, Image.Resampling.BICUBIC)
        grain = generator.normal(0, 6, (SIDES[1], SIDES[0], 1))
        Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)).save(path, quality=QUALITY)
        total += path.stat().st_size
    return total


def _load(folder: Path) -> TaskData:
    return vision.load(TASK, vision.Sources("tall", folder / "cache", folder / "data", "folder"))


def _read(found: TaskData) -> float:
    start, images = time.perf_counter(), found.test_images
    for first in range(0, len(images), READ_AT_ONCE):
        images[first : first + READ_AT_ONCE]
    return time.perf_counter() - start
