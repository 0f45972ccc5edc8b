"""Seconds and peak memory of one variant's steps, measured in a process of its own."""

from __future__ import annotations

import ctypes
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.problem import METHODS, SIZES, build
from benchmarks.variants import plain, prepare

LEAST_ROUNDS = 2
MOST_ROUNDS = 200
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a process measures: `variant` is plain, engine or autograd; it repeats for about `seconds`.

    `clock`: wall, or cpu for the process's own time, which with one thread is steady on a busy machine.
    `chunk` bounds the examples in one of the engine's forward passes; 0 runs all of them at once.
    """

    model: str
    method: str
    variant: str
    device: str
    threads: int
    seconds: float
    clock: str = "wall"
    chunk: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of the steps and of the plain steps in between; `held` bytes before, `peak` bytes beyond during steps.

    `held` is what lives before the first step, the interpreter included on a CPU: weights, experts, factors and φ.
    """

    steps: tuple[float, ...]
    plain: tuple[float, ...]
    held: int
    peak: int
    loss: float


def measure(job: Job) -> Timing:
    """Measure in this process; call it in a fresh one, because the peak is the process's."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    memory = Memory(device)
    problem = build(SIZES[job.model], METHODS[job.method], device, dense=job.variant == "engine")
    rest = prepare(problem, job.variant, job.chunk or None)
    held = memory.start()
    step = rest()
    loss = float(step())
    peak = memory.peak()
    other = plain(problem)
    other()
    problem.model.zero_grad(set_to_none=True)
    steps: list[float] = []
    others: list[float] = []
    clock = CLOCKS[job.clock]
    end = time.perf_counter() + job.seconds
    while len(steps) < LEAST_ROUNDS or (time.perf_counter() < end and len(steps) < MOST_ROUNDS):
        others.append(timed(other, device, clock))
        problem.model.zero_grad(set_to_none=True)
        steps.append(timed(step, device, clock))
    return Timing(steps=tuple(steps), plain=tuple(others), held=held, peak=peak - held, loss=loss)


def timed(step: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Return the time that a step takes by the clock."""
    _wait(device)
    start = clock()
    step()
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Memory:
    """Bytes in use and their peak: torch's allocator on a GPU, the process's resident memory on a CPU (Linux)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> int:
        """Forget earlier peaks and return the bytes in use."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        _return_free_memory()
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to the present VmRSS
        return _status("VmRSS")

    def peak(self) -> int:
        """Return the most bytes in use since `start`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _return_free_memory() -> None:
    """Give freed pages back to the system, so that they do not hide what the steps allocate (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
