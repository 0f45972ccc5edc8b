"""Evaluations during an adaptation, all kept so that a selection rule can be applied afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from fusionbench_lite.adaptation.engine.module import Adaptation
from fusionbench_lite.adaptation.engine.procedure import Batch, Procedure
from fusionbench_lite.base.processes import gathered, own_tasks
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation import metrics
from fusionbench_lite.evaluation.measures import Measure, shared
from fusionbench_lite.evaluation.results import Evaluation, TaskResult
from fusionbench_lite.evaluation.selection import RULES, choose

Stored = Tensor | list[str]
Predict = Callable[[Procedure, Iterable[str]], Evaluation]


class Evaluations(Callback):
    """Evaluate before the first step, every `every` steps and after the last.

    `predict(procedure, tasks)` judges the tasks, those of the procedure unless `tasks` names others too; `held_out(tasks)` returns
    the examples whose adaptation loss is measured too.
    By step are kept: `values` {task: value of its metric}, `held_out_losses`, the sum over tasks, `predictions` {task}, and
    `answers` {task} where scores were read in texts; by task `labels` and `metrics`; by selection rule `learned`, the learnables
    at the step it picks, where that is not the last; `seconds` is what the evaluations took. All survive a resume.
    """

    def __init__(
        self, predict: Predict, every: int, steps: int, held_out: Callable[[list[str]], Batch] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> None:
        self.predict = predict
        self.tasks = tasks
        self.every = every
        self.steps = steps
        self.held_out = held_out
        self.tasks = tasks
        self.values: dict[int, dict[str, float]] = {}
        self.held_out_losses: dict[int, float] = {}
        self.predictions: dict[int, dict[str, Stored]] = {}
        self.answers: dict[int, dict[str, list[str]]] = {}
        self.confidences: dict[int, dict[str, float | None]] = {}
        self.labels: dict[str, Stored] = {}
        self.metrics: dict[str, str] = {}
        self.learned: dict[str, dict[str, Tensor]] = {}
        self.seconds = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Evaluate the start, unless a checkpoint already holds it."""
        if not self.values:
            self._evaluate(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Evaluate where the schedule says so."""
        step = pl_module.completed
        if (step % self.every == 0 or step == self.steps) and step not in self.values:
            self._evaluate(pl_module)

    @property
    def chosen(self) -> dict[str, int]:
        """The step that each selection rule picks; a rule that has nothing to go by is left out."""
        averages = {step: self.average(step) for step in self.values}
        measure = self._measure
        steps = {
            rule: choose(rule, averages, self.held_out_losses, higher=measure is None or measure.higher) for rule in RULES
        }
        return {rule: step for rule, step in steps.items() if step is not None}

    def average(self, step: int) -> float | None:
        """The mean over tasks at a step, None where units or directions of the metrics differ."""
        return None if self._measure is None else float(np.mean(list(self.values[step].values())))

    def results(self, step: int) -> dict[str, TaskResult]:
        """The results of an evaluation, by task."""
        return {
            task: TaskResult(
                _restored(predictions), _restored(self.labels[task]), self.metrics[task],
                answers=np.asarray(self.answers[step][task]) if task in self.answers.get(step, ()) else None,
                confidence=self.confidences.get(step, {}).get(task),
            )
            for task, predictions in self.predictions[step].items()
        }

    @property
    def _measure(self) -> Measure | None:
        return shared(metrics.get(name).measure for name in self.metrics.values())

    def _evaluate(self, module: Adaptation) -> None:
        start = time.perf_counter()
        procedure, step = module.procedure, module.completed
        procedure.refresh(step)
        judged = module.tasks if self.tasks is None else self.tasks
        results = gathered(dict(self.predict(procedure, own_tasks(judged))))
        self.metrics = {task: results[task].metric for task in judged}
        self.labels = {task: _stored(results[task].labels) for task in judged}
        self.values[step] = {task: results[task].value for task in judged}
        self.predictions[step] = {task: _stored(results[task].predictions) for task in judged}
        self.confidences[step] = {task: results[task].confidence for task in judged}
        answers = {task: results[task].answers for task in judged}
        self.answers[step] = {task: texts.tolist() for task, texts in answers.items() if texts is not None}
        if self.held_out is not None:
            losses = {task: float(loss) for task, loss in procedure.losses(self.held_out(own_tasks(module.tasks))).items()}
            everyone = gathered(losses)
            self.held_out_losses[step] = sum(everyone[task] for task in module.tasks)
        for rule, chosen in self.chosen.items():
            if chosen == step and rule != "last":
                self.learned[rule] = procedure.learned()
        self.seconds += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {name: getattr(self, name) for name in _STORED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint stored. Raises InputError for one of version 0.4, which lacks the labels."""
        if "values" not in state_dict:
            raise InputError(
                "the unfinished run was begun by version 0.4, whose checkpoint holds no labels: delete its folder in "
                "partial/ of the results directory and run again"
            )
        for name in _STORED:
            setattr(self, name, state_dict.get(name, {}) if name in ("answers", "confidences") else state_dict[name])


_STORED = ("values", "held_out_losses", "predictions", "answers", "confidences", "labels", "metrics", "learned", "seconds")


def _stored(array: np.ndarray) -> Stored:
    """Return predictions or labels as a checkpoint can hold them: no tensor holds text."""
    return array.tolist() if array.dtype.kind == "U" else torch.from_numpy(array)


def _restored(stored: Stored) -> np.ndarray:
    return stored.numpy() if isinstance(stored, Tensor) else np.asarray(stored)


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
            self.coefficients.append(torch.stack(tasks).float())  # [L, T]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"steps": self.steps, "coefficients": self.coefficients}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint stored."""
        self.steps, self.coefficients = state_dict["steps"], state_dict["coefficients"]
