"""Held-out training texts: measured at the ends of epochs, and what chooses the best of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusionbench_lite.evaluation.metrics import METRICS
from fusionbench_lite.finetuning.language.batches import Questions, Rows, by_length, in_chunks

ROWS = 64
"""Texts in one forward pass."""


class Validation:
    """The result of a model on held-out texts after every epoch, every `every` steps and the last step.

    `by_step` maps steps to values of `metric`, those of answers are the part that is exact. `keep` are the parameters of which
    those of the best epoch, the first of equals, are kept. Without held-out texts nothing is measured.
    """

    def __init__(
        self, model: nn.Module, questions: Questions, rows: Rows, *, metric: str, steps: int, an_epoch: int,
        every: int | None, keep: Mapping[str, nn.Parameter] | None,
    ) -> None:
        self.model, self.questions = model, questions
        self.rows = by_length(questions.texts.lengths, rows)
        self.metric = metric if questions.answers is None else "exact_match"
        self.steps, self.an_epoch, self.every, self._keep = steps, an_epoch, every, keep
        self.by_step: dict[int, float] = {}
        self.best: int | None = None
        self._kept: dict[str, Tensor] = {}

    def wants(self, completed: int) -> bool:
        """Whether a measurement is due."""
        due = self._ends_epoch(completed) or (self.every is not None and completed % self.every == 0)
        return bool(len(self.rows)) and due

    def after(self, completed: int) -> None:
        """Measure, and keep the weights where an epoch ends that is better than those before."""
        self.by_step[completed] = value = self._value()
        if self._keep is None or not self._ends_epoch(completed):
            return
        if self.best is None or value > self.by_step[self.best]:
            self.best = completed
            self._kept = {name: tensor.detach().cpu().clone() for name, tensor in self._keep.items()}

    @torch.no_grad()
    def select(self) -> None:
        """Put the weights of the best epoch into the model, where they are asked for."""
        for name, tensor in (self._keep or {}).items():
            tensor.copy_(self._kept[name])

    def summary(self) -> dict[str, Any]:
        """Return what a manifest says."""
        chosen = self.steps if self.best is None else self.best
        return {
            "texts": len(self.rows), "metric": self.metric, "value": self.by_step.get(chosen), "step": chosen,
            "by_step": {str(step): value for step, value in self.by_step.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"by_step": self.by_step, "best": self.best, "kept": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what a checkpoint stored."""
        self.by_step, self.best, self._kept = state["by_step"], state["best"], state["kept"]

    def _ends_epoch(self, completed: int) -> bool:
        return completed % self.an_epoch == 0 or completed == self.steps

    def _value(self) -> float:
        found = [self.questions.predictions(self.model, part) for part in in_chunks(self.rows, ROWS)]
        predictions, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if self.questions.answers is not None:
            return float(predictions.mean())
        return METRICS[self.metric].value(predictions, labels)
