"""How long the stages of a run take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from fusionbench_lite.evaluation.passes import begin_peak


class Clock:
    """Seconds spent in each stage of a run, and in `parts` of stages; `peaks` of a GPU's memory in stages that ask for it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.parts: dict[str, float] = {}
        self.peaks: dict[str, int] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to the stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @contextlib.contextmanager
    def measured(self, name: str, device: torch.device) -> Iterator[None]:
        """As `stage`, and on a GPU keep the largest memory in use during the block."""
        if device.type == "cuda":
            begin_peak(device)
        with self.stage(name):
            yield
        if device.type == "cuda":
            self.peaks[name] = int(torch.cuda.max_memory_allocated(device))

    def total(self) -> dict[str, float]:
        """Return the seconds of every stage, of parts, and the sum of the stages."""
        return {**self.seconds, **self.parts, "total": sum(self.seconds.values())}
