"""Predictions of a model on the test examples of its tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionbench_lite.data import TaskData, normalise

Encode = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """`predictions` int64 [N] and `correct` bool [N], in the order of the test examples."""

    predictions: NDArray[np.int64]
    correct: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """The part of the examples that is classified correctly."""
        return float(self.correct.mean())


Evaluation = Mapping[str, TaskResult]


def average(evaluation: Evaluation) -> float:
    """Return the unweighted mean accuracy over tasks."""
    return float(np.mean([result.accuracy for result in evaluation.values()]))


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates encoders on the test examples of some tasks.

    `heads[task](features)` returns logits; `batch_size` bounds memory and does not change results beyond rounding.
    """

    data: Mapping[str, TaskData]
    heads: Mapping[str, Callable[[Tensor], Tensor]]
    device: torch.device
    batch_size: int = 250

    def task(self, task: str, encode: Encode) -> TaskResult:
        """Return the predictions of one task; the first of equal logits wins."""
        images = self.data[task].test_images
        return self.rows(task, lambda rows: encode(normalise(torch.from_numpy(images[rows]).to(self.device))))

    def rows(self, task: str, features: Callable[[NDArray[np.int64]], Tensor]) -> TaskResult:
        """Return the predictions of one task from the features of rows of its test examples."""
        labels, parts = self.data[task].test_labels, []
        with torch.inference_mode():
            for start in range(0, len(labels), self.batch_size):
                rows = np.arange(start, min(start + self.batch_size, len(labels)))
                parts.append(self.heads[task](features(rows)).argmax(-1).cpu())
        predictions = torch.cat(parts).numpy().astype(np.int64)
        return TaskResult(predictions, predictions == labels)

    def evaluate(self, encode: Encode, tasks: Iterable[str] | None = None) -> Evaluation:
        """Return the predictions of one encoder on the given tasks, all by default."""
        return {task: self.task(task, encode) for task in (self.data if tasks is None else tasks)}
