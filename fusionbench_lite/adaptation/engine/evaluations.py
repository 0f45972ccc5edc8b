"""Evaluations during an adaptation, kept so that a selection rule can be applied afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from fusionbench_lite.adaptation.engine.module import Adaptation, own_tasks

Predict = Callable[[Callable[[torch.Tensor], torch.Tensor], Iterable[str]], Mapping[str, tuple[np.ndarray, np.ndarray]]]


class Evaluations(Callback):
    """Evaluate before the first step, every `every` steps and after the last.

    `predict(encode, tasks)` returns (predictions, correct) of each task. `accuracies` keeps {task: accuracy} of every
    evaluation by step; `kept` the predictions of the latest evaluation ("last") and of the one with the highest
    average accuracy on the test labels ("best_test", the first of equals); `seconds` what the evaluations took. All
    survive a resume.
    """

    def __init__(self, predict: Predict, every: int, steps: int) -> None:
        self.predict = predict
        self.every = every
        self.steps = steps
        self.accuracies: dict[int, dict[str, float]] = {}
        self.kept: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Evaluate the start, unless a checkpoint already holds it."""
        if not self.accuracies:
            self._evaluate(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Evaluate where the schedule says so."""
        step = pl_module.completed
        if (step % self.every == 0 or step == self.steps) and step not in self.accuracies:
            self._evaluate(pl_module)

    def _evaluate(self, module: Adaptation) -> None:
        start = time.perf_counter()
        module.encoder.refresh()
        mine = own_tasks(module.tasks)
        results = _gathered(dict(self.predict(module.encoder.encode, mine)))
        step = module.completed
        self.accuracies[step] = {task: float(results[task][1].mean()) for task in module.tasks}
        latest = {
            "step": step,
            "predictions": {task: torch.from_numpy(results[task][0]) for task in module.tasks},
            "correct": {task: torch.from_numpy(results[task][1]) for task in module.tasks},
        }
        best = self.kept.get("best_test")
        if best is None or _average(self.accuracies[step]) > _average(self.accuracies[best["step"]]):
            self.kept["best_test"] = latest
        self.kept["last"] = latest
        self.seconds += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"accuracies": self.accuracies, "kept": self.kept, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint stored."""
        self.accuracies = state_dict["accuracies"]
        self.kept = state_dict["kept"]
        self.seconds = state_dict["seconds"]


def _average(accuracies: Mapping[str, float]) -> float:
    return float(np.mean(list(accuracies.values())))


def _gathered(own: dict[str, Any]) -> dict[str, Any]:
    """Return the results of all processes' tasks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    parts: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, own)
    return {task: result for part in parts for task, result in part.items()}
