"""What a plan is made from, and what it says."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from fusionbench_lite import registry
from fusionbench_lite.registry import Method
from fusionbench_lite.resources.transformer import Transformer
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.costs import Cost, Setting, Stage

PHASES = ("load", "build", "merge", "step", "evaluate")
"""Weights are read, a method's constants made, merged weights written and gradients pulled back, gradients computed, test
images run."""

AFTER = PHASES[2:]
"""From the first merge on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """A run: `method` with its `values` on `tasks` experts of `encoder`.

    A step reads `batches` times `batch_size` images of every task, or of a process's own where `processes` share the tasks,
    of which `chunk` at most run at once. `device` is "cpu" or "cuda"; `place` is that of constants, and `experts` says where
    the experts are held while those are made: "disk" (read each time), "cpu", "device", or "memory", for as long as the run
    takes. `classes` are the tasks' numbers of classes. `test_images` of all tasks together are evaluated `evaluations` times,
    `eval_batch` at once (None: as many as the evaluation chooses), and `held_out` per task with them. `threads` decompose
    matrices. `keep` says whether sums that only save time are kept; None: as `device_total` and `cpu_total` allow, the bytes
    of the memories, and kept where those are not known.
    """

    encoder: Architecture
    method: str
    tasks: int
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = 16
    batches: int = 1
    processes: int = 1
    chunk: int | None = None
    precision: str = "fp32"
    device: str = "cuda"
    place: str = "device"
    experts: str = "disk"
    classes: tuple[int, ...] = ()
    steps: int = 0
    test_images: int = 0
    evaluations: int = 1
    eval_batch: int | None = None
    held_out: int = 0
    threads: int = 1
    device_total: int | None = None
    cpu_total: int | None = None
    keep: bool | None = None

    @property
    def bf16(self) -> bool:
        """Whether passes run in mixed precision."""
        return self.precision == "bf16"

    @property
    def images(self) -> int:
        """The images that a step of this process reads."""
        return self.read * self.batch_size * self.batches

    @property
    def read(self) -> int:
        """The tasks whose images a process reads, the one with most of them."""
        return -(-self.tasks // self.processes)

    def together(self, stage: Stage) -> int:
        """Return the images of a task in the largest batch of a stage's steps."""
        batch = self.batch_of(stage)
        return max(self.batch_size * self.batches, batch) if stage.merges else batch

    def batch_of(self, stage: Stage) -> int:
        """Return the images of a task for the update that ends a step of a stage."""
        return (stage.batch or self.batch_size) * self.batches

    @functools.cached_property
    def transformer(self) -> Transformer:
        """The passes of the encoder."""
        return Transformer(self.encoder)

    @functools.cached_property
    def entry(self) -> Method:
        """The method, in the form that learns where it has two."""
        return registry.get(self.method, learning=True)

    @functools.cached_property
    def h(self) -> Any:
        """The checked hyperparameters, by default where `values` has none."""
        return self.entry.configure(**self.values)

    @functools.cached_property
    def cost(self) -> Cost:
        """What the method says that it takes; one that says nothing counts as a descent on all task vectors."""
        of = self.entry.cost or costs.descent_on_vectors
        keep = True if self.keep is None else self.keep
        return of(Setting(architecture=self.encoder, tasks=self.tasks, h=self.h, threads=self.threads, keep=keep, steps=self.steps))

    @functools.cached_property
    def learned(self) -> int:
        """The number of parameters that steps learn; of a method that does not say it, a coefficient per task and tensor."""
        return (self.entry.learned or costs.coefficients)(self.encoder, self.tasks, self.h).in_steps


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something that takes memory: `where` is "device", "cpu" or "disk"; `phases` are those that it is there in."""

    what: str
    where: str
    nbytes: int
    phases: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations: of an image's forward pass, of a step, before the first step, of all evaluations, of everything."""

    image: int
    step: int
    setup: int
    evaluation: int
    total: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run takes."""

    inputs: Inputs
    entries: tuple[Entry, ...]
    flops: Flops

    def peak(self, where: str = "device", phase: str | None = None) -> int:
        """Return the most bytes in a memory, in one phase or over all; a processor's device and memory are one."""
        places = ("device", "cpu") if self.inputs.device == "cpu" and where != "disk" else (where,)
        return max(
            sum(entry.nbytes for entry in self.entries if entry.where in places and part in entry.phases)
            for part in (PHASES if phase is None else (phase,))
        )
