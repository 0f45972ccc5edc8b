"""An adaptive method at full size: seconds and peak memory, in a process of its own."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before lightning, which imports torchvision)

# isort: split
from lightning.pytorch.callbacks import Callback

from benchmarks import full_size_problem as problem
from benchmarks.measure import Memory
from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.fit import FitSettings, fit
from fusionbench_lite.adaptation.engine.placement import placing
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Examples, Procedure
from fusionbench_lite.evaluation.evaluator import Evaluator
from fusionbench_lite.finetuning.recipes import PRECISIONS
from fusionbench_lite.models import clip

WARM_UP = 2
"""Steps before the first one that is timed."""

COURSE = 1000
"""Steps of the run that a measurement is the start of: a method with stages is measured in its first one."""

POOL = 2
"""Batches of different images that the steps take in turn; what frozen networks say of them is computed before."""

_MMAP_THRESHOLD = -3
"""glibc's M_MMAP_THRESHOLD."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A method on the first `tasks` tasks: `steps` timed steps of `batch_size` images a task, at most `chunk` at once with
    constants at `place`, and an evaluation of `images` images, `eval_batch` at once."""

    model: str
    layout: str
    tasks: int
    method: str
    device: str
    precision: str
    place: str
    chunk: int | None
    batch_size: int
    steps: int
    images: int
    eval_batch: int
    threads: int
    scratch: Path

    @property
    def known(self) -> int:
        """The images of all tasks whose frozen features are computed, by methods that read them."""
        pool = POOL * self.batch_size
        return (self.tasks - 1) * pool + max(pool, self.images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """`steps` and `reading`: seconds of every timed step and of having its images at hand; `images` of all tasks in one.

    `setup`: seconds from experts to the first step; `known`: of frozen features, 0 without; `evaluation`: of the evaluation.
    `peaks`: bytes beyond `held`, what was in use at the start, by phase.
    """

    steps: tuple[float, ...]
    reading: tuple[float, ...]
    images: int
    setup: float
    known: float
    evaluation: float
    held: int
    peaks: dict[str, int]


def measure(job: Job) -> Figures:
    """Measure in this process; call it in a fresh one, because the peak is the process's. A tiny model goes first."""
    torch.set_num_threads(job.threads)
    warnings.simplefilter("ignore")
    _return_memory_at_once()
    _run(dataclasses.replace(job, model="tiny", tasks=min(2, job.tasks), batch_size=2, steps=1, images=4, eval_batch=2))
    gc.collect()
    return _run(job)


def _return_memory_at_once() -> None:
    """Have large blocks given back as they are freed, so that resident memory is what is in use (glibc only)."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, 256 << 10)


def _run(job: Job) -> Figures:
    torch.manual_seed(0)
    device, size, tasks = torch.device(job.device), problem.SIZES[job.model], problem.task_names(job.tasks)
    shapes, pixels = clip.shapes(size, job.layout), problem.pixels(size)
    noise = problem.noise(shapes, device)
    phases = Phases(device)
    experts = problem.experts(shapes, noise, tasks)
    model = problem.model(size, job.layout, experts.pretrained, device)
    experts.check_unread()
    evaluator = evaluator_of(job, tasks[:1], job.images)
    phases.end("load")
    entry, heads = registry.get(job.method, learning=True), problem.heads(size, tasks, device)
    context = Context(model, heads, COURSE, job.chunk, example=evaluator.inputs(pixels[:1]))
    with timed(device) as setup, placing(job.place, job.scratch):
        procedure: Procedure = entry.function(experts, entry.configure())(context)
    phases.end("build")
    feed, watch = Feed(job, procedure, evaluator, pixels, tasks), Watch(device)
    with timed(device) as known:
        feed.look_ahead()
    phases.end("known")
    settings = FitSettings(accelerator=device.type, precision=PRECISIONS[job.precision])
    fit(procedure, feed.batches_of, WARM_UP + job.steps, settings, [watch])
    phases.end("step")
    procedure.refresh(WARM_UP + job.steps)
    _evaluate(procedure, feed, evaluator_of(job, tasks[:1], min(job.eval_batch, job.images)))
    with timed(device) as evaluation:
        _evaluate(procedure, feed, evaluator)
    phases.end("evaluate")
    return Figures(
        steps=tuple(watch.seconds[WARM_UP:]), reading=tuple(feed.seconds[WARM_UP : len(watch.seconds)]), images=feed.images,
        setup=setup[0], known=known[0] if feed.known else 0.0, evaluation=evaluation[0], held=phases.held, peaks=phases.peaks,
    )


def evaluator_of(job: Job, tasks: tuple[str, ...], images: int) -> Evaluator:
    """Return the evaluation of so many images of every one of the tasks, `eval_batch` at once."""
    size, device = problem.SIZES[job.model], torch.device(job.device)
    return Evaluator(
        data=problem.data(tasks, problem.pixels(size), images), heads=problem.heads(size, tasks, device), device=device,
        batch_size=job.eval_batch, prepare=clip.normalise, bf16=job.precision == "bf16",
    )


def _evaluate(procedure: Procedure, feed: Feed, evaluator: Evaluator) -> None:
    for task in evaluator.data:
        evaluator.rows(task, lambda rows, task=task: procedure.encode(task, feed.examples(task, rows)))  # type: ignore[misc]


class Feed:
    """The images of steps and evaluations as a run reads them: bytes are brought to the device and normalised there."""

    def __init__(
        self, job: Job, procedure: Procedure, evaluator: Evaluator, pixels: NDArray[np.uint8], tasks: tuple[str, ...]
    ) -> None:
        self.job, self.procedure, self.evaluator, self.pixels, self.tasks = job, procedure, evaluator, pixels, tasks
        self.known: dict[str, Tensor] = {}
        self.seconds: list[float] = []
        self.images = 0

    def batches_of(self, step: int) -> list[Batch]:
        """Return the examples of every draw of a step."""
        batches: list[Batch] = []
        with timed(self.evaluator.device) as spent:
            for draw in self.procedure.draws(step):
                size = draw.size or self.job.batch_size
                rows = (np.arange(size) + draw.number * size) % (POOL * self.job.batch_size)
                batches.append({task: self.examples(task, rows) for task in self.tasks})
        self.seconds.append(spent[0])
        self.images = sum(len(examples) for batch in batches for examples in batch.values())
        return batches

    def examples(self, task: str, rows: NDArray[np.int64]) -> Examples:
        """Return rows of a task."""
        known, labels = self.known.get(task), None
        inputs = self._inputs(rows) if self.procedure.reads_inputs or known is None else None
        if self.procedure.reads_labels:
            labels = torch.zeros(len(rows), dtype=torch.long, device=self.evaluator.device)
        return Examples(inputs, None if known is None else known[torch.from_numpy(rows)], labels)

    def look_ahead(self) -> None:
        """Compute what frozen networks say of all images that are read: the first task's is evaluated, too."""
        for task in self.tasks:
            count = POOL * self.job.batch_size
            count = max(count, self.job.images) if task == self.tasks[0] else count

            def compute(rows: NDArray[np.int64], task: str = task) -> Tensor | None:
                with torch.no_grad():
                    return self.procedure.precomputed(task, self._inputs(rows))

            if compute(np.arange(1)) is None:
                return
            parts = [part for _, part in self.evaluator.passes.run(compute, count) if part is not None]
            self.known[task] = torch.cat(parts)

    def _inputs(self, rows: NDArray[np.int64]) -> Tensor:
        return self.evaluator.inputs(self.pixels[rows % len(self.pixels)])


class Watch(Callback):
    """Seconds of every step, without the time in which its images are read."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self._start = device, [], 0.0  # type: ignore[var-annotated]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Take the time."""
        self._start = now(self.device)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the time that has passed."""
        self.seconds.append(now(self.device) - self._start)


class Phases:
    """The peak beyond what was held at the start, of each phase as it ends."""

    def __init__(self, device: torch.device) -> None:
        self.memory, self.peaks = Memory(device), {}  # type: ignore[var-annotated]
        self.held = self.memory.start()

    def end(self, phase: str) -> None:
        """Note the peak since the last phase ended."""
        self.peaks[phase] = self.memory.peak() - self.held
        self.memory.start()


@contextmanager
def timed(device: torch.device) -> Iterator[list[float]]:
    """Take the seconds of the block, which are in the list when it ends."""
    spent = [0.0]
    start = now(device)
    yield spent
    spent[0] = now(device) - start


def now(device: torch.device) -> float:
    """Return the time in seconds once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
