"""What a fine-tuning measures and says while it runs."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before lightning, which imports torchvision)

# isort: split

from lightning.pytorch.callbacks import Callback

from fusionbench_lite.adaptation.engine.module import Adaptation
from fusionbench_lite.adaptation.engine.procedure import Examples
from fusionbench_lite.adaptation.learners.training import Training
from fusionbench_lite.evaluation.passes import Passes
from fusionbench_lite.finetuning.step_images import Rows, StepImages
from fusionbench_lite.models.heads import ZeroShotHead

ROWS = 256
"""Held-out images in one forward pass, unless memory holds fewer."""
SPAN = 50
"""Steps over which the speed is averaged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """Where a fine-tuning stands: finished steps of how many, the sum of the tasks' losses, training images per second."""

    name: str
    step: int
    steps: int
    loss: float
    images_per_second: float

    def __str__(self) -> str:
        return f"{self.name}: step {self.step}/{self.steps}, loss {self.loss:.4f}, {self.images_per_second:.0f} images/s"


class Accuracies(Callback):
    """Accuracy on the held-out images of each task: before the first step, every `every` steps and after the last.

    `by_step` maps steps to {task: accuracy}; tasks without held-out images are left out. It survives a resume.
    """

    def __init__(self, batches: StepImages, rows: Mapping[str, Rows], every: int | None, steps: int, bf16: bool) -> None:
        self.batches, self.every, self.steps, self.bf16 = batches, every, steps, bf16
        self.rows = {task: held_out for task, held_out in rows.items() if len(held_out)}
        self.by_step: dict[int, dict[str, float]] = {}
        self._passes = Passes(ROWS, 1, batches.device)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure the pretrained model; a run that is resumed has done so."""
        if pl_module.completed == 0:
            self._measure(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure where it is due."""
        step = pl_module.completed
        if step == self.steps or (self.every is not None and step % self.every == 0):
            self._measure(pl_module)

    def _measure(self, module: Adaptation) -> None:
        if self.rows:
            self.by_step[module.completed] = {task: self._accuracy(module, task) for task in self.rows}

    @torch.no_grad()
    def _accuracy(self, module: Adaptation, task: str) -> float:
        rows = self.rows[task]
        correct = self._passes.run(lambda part: self._correct(module, task, rows[part]), len(rows))
        return sum(count for _, count in correct) / len(rows)

    def _correct(self, module: Adaptation, task: str, rows: Rows) -> int:
        """Return how many of the rows are classified correctly; logits are in the head's precision, the first of equals wins."""
        batches, procedure = self.batches, cast(Training, module.procedure)
        images = batches.normalise(torch.from_numpy(batches.pixels(task, rows)).to(batches.device))
        with torch.autocast(batches.device.type, torch.bfloat16, enabled=self.bf16):
            features = procedure.encode(task, Examples(images))
        head = cast(ZeroShotHead, procedure.context.heads[task])
        predictions = head(features.to(head.weight.dtype)).argmax(-1).cpu().numpy()
        return int((predictions == batches.pools[task].labels[rows]).sum())

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"found": self.by_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint stored."""
        self.by_step = state_dict["found"]


class Reports(Callback):
    """Calls `report` with the status after every step."""

    def __init__(self, name: str, steps: int, report: Callable[[Status], None]) -> None:
        self.name, self.steps, self.report = name, steps, report
        self._ends: deque[tuple[float, int]] = deque(maxlen=SPAN + 1)
        self._images = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self._ends.append((time.perf_counter(), 0))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report the step."""
        self._images += sum(len(examples) for draw in batch for examples in draw.values())
        self._ends.append((time.perf_counter(), self._images))
        (first, before), (last, after) = self._ends[0], self._ends[-1]
        speed = (after - before) / max(last - first, 1e-9)
        self.report(Status(
            name=self.name, step=pl_module.completed, steps=self.steps, loss=pl_module.history.losses[-1], images_per_second=speed
        ))
