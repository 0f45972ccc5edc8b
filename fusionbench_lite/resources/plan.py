"""What a plan is made from, and what it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fusionbench_lite.resources.encoder import Encoder

PHASES = ("load", "build", "merge", "step", "evaluate")
"""Weights are read, a method's constants made, merged weights written and gradients pulled back, gradients computed, test
images run."""

AFTER = PHASES[2:]
"""From the first merge on."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A run: `method` with its `values` on `tasks` experts of `encoder`.

    A step reads `batches` times `batch_size` images of every task, or of a process's own where `processes` share the tasks,
    of which `chunk` at most run at once. `device` is "cpu"
    or "cuda"; `place` is that of constants, and `experts` says where the experts are held while those are made: "disk"
    (read each time), "cpu", "device", or "memory", for as long as the run takes. `classes` are the tasks' numbers of
    classes. `test_images` of all tasks together are evaluated `evaluations` times, `eval_batch` at once (None: as many
    as the evaluation chooses), and `held_out` per task with them. `threads` decompose matrices. `device_total` and
    `cpu_total` are the bytes of the memories, where known: they decide whether AdaRank keeps dense sums.
    """

    encoder: Encoder
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

    def batch_of(self, stage: str) -> int:
        """Return the images of a task for a step on MetaMerging's "outer" coefficients or on its "adapter"s."""
        return int(self.values.get(f"{stage}_batch_size") or self.batch_size) * self.batches

    @property
    def trains_adapters(self) -> bool:
        """Whether MetaMerging has a stage that trains its adapters."""
        chosen = self.values.get("adapters", "blocks") != "none" and self.values.get("adapter_steps") != 0
        return chosen or bool(self.values.get("base"))  # on given weights nothing else is trained

    @property
    def learns_coefficients(self) -> bool:
        """Whether MetaMerging has a stage on its coefficients."""
        last = self.values.get("adapter_steps")
        return not self.values.get("base") and not (last is not None and 0 < self.steps <= last)

    @property
    def widest(self) -> int:
        """The images of one task in the largest batch of MetaMerging's stages."""
        sizes = [self.batch_of("adapter")] if self.trains_adapters else []
        sizes += [self.batch_size * self.batches, self.batch_of("outer")] if self.learns_coefficients else []
        return max(sizes, default=1)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something that takes memory: `where` is "device", "cpu" or "disk"; `phases` are those that it is there in."""

    what: str
    where: str
    nbytes: int
    phases: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
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
