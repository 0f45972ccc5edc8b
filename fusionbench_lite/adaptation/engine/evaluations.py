"""Evaluations during an adaptation, all kept so that a selection rule can be applied afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from fusionbench_lite.adaptation.engine.module import Adaptation
from fusionbench_lite.adaptation.engine.procedure import Batch, Procedure
from fusionbench_lite.base.processes import gathered, own_tasks
from fusionbench_lite.evaluation.selection import RULES, choose

Predict = Callable[[Procedure, Iterable[str]], Mapping[str, tuple[np.ndarray, np.ndarray]]]


class Evaluations(Callback):
    """Evaluate before the first step, every `every` steps and after the last.

    `predict(procedure, tasks)` returns (predictions, correct) of each task; `held_out(tasks)` the examples whose
    adaptation loss is measured too. By step are kept: `accuracies` {task: accuracy}, `held_out_losses`, the sum over
    tasks, and `predictions` {task: (predictions, correct)}; by selection rule `learned`, the learnables at the step it
    picks, where that is not the last; `seconds` is what the evaluations took. All survive a resume.
    """

    def __init__(
        self, predict: Predict, every: int, steps: int, held_out: Callable[[list[str]], Batch] | None = None
    ) -> None:
        self.predict = predict
        self.every = every
        self.steps = steps
        self.held_out = held_out
        self.accuracies: dict[int, dict[str, float]] = {}
        self.held_out_losses: dict[int, float] = {}
        self.predictions: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        self.learned: dict[str, dict[str, Tensor]] = {}
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

    @property
    def chosen(self) -> dict[str, int]:
        """The step that each selection rule picks; a rule that has nothing to go by is left out."""
        averages = {step: float(np.mean(list(values.values()))) for step, values in self.accuracies.items()}
        steps = {rule: choose(rule, averages, self.held_out_losses) for rule in RULES}
        return {rule: step for rule, step in steps.items() if step is not None}

    def _evaluate(self, module: Adaptation) -> None:
        start = time.perf_counter()
        procedure, step = module.procedure, module.completed
        procedure.refresh(step)
        mine = own_tasks(module.tasks)
        results = gathered(dict(self.predict(procedure, mine)))
        self.accuracies[step] = {task: float(results[task][1].mean()) for task in module.tasks}
        self.predictions[step] = {
            task: (torch.from_numpy(results[task][0]), torch.from_numpy(results[task][1])) for task in module.tasks
        }
        if self.held_out is not None:
            own = {task: float(loss) for task, loss in procedure.losses(self.held_out(mine)).items()}
            everyone = gathered(own)
            self.held_out_losses[step] = sum(everyone[task] for task in module.tasks)
        for rule, chosen in self.chosen.items():
            if chosen == step and rule != "last":
                self.learned[rule] = procedure.learned()
        self.seconds += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {name: getattr(self, name) for name in _STORED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint stored."""
        for name in _STORED:
            setattr(self, name, state_dict[name])


_STORED = ("accuracies", "held_out_losses", "predictions", "learned", "seconds")


class Trajectory(Callback):
    """Keep the merging coefficients of every `every`-th step: `steps`, and `coefficients` [L, T] at each."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.steps: list[int] = []
        self.coefficients: list[Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Keep the start."""
        if not self.steps:
            self._keep(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep where it is due."""
        if pl_module.completed % self.every == 0:
            self._keep(pl_module)

    def _keep(self, module: Adaptation) -> None:
        rows = module.procedure.coefficients()
        tasks = [row for name, row in rows.items() if not name.endswith("/common")]
        if tasks:
            self.steps.append(module.completed)
            self.coefficients.append(torch.stack(tasks).float())

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"steps": self.steps, "coefficients": self.coefficients}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint stored."""
        self.steps, self.coefficients = state_dict["steps"], state_dict["coefficients"]
