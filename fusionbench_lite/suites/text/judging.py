"""Judging models that generate their answers: decoded, compared or read as numbers, and kept as texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionbench_lite.data.text import TextTask, Tokenizer
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation import metrics
from fusionbench_lite.evaluation.evaluator import Evaluator, restored
from fusionbench_lite.evaluation.results import TaskResult, score_in
from fusionbench_lite.models.language import Answering


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratingEvaluator(Evaluator):
    """Evaluates encoders by the answers that `model` generates with their weights, greedily, up to `longest` tokens.

    Answers are decoded without special tokens. They are right where they are the text of the right answer; where a task is
    judged by scores they are read as numbers, 0.0 where they are none.
    """

    model: Answering
    tokenizer: Tokenizer
    longest: int
    generates: ClassVar[bool] = True

    def trial(self, encode: Callable[[], Tensor]) -> None:
        """Refuse an adapted model that generates nothing, because what it changes are features."""
        with torch.inference_mode():
            encode()  # what is wrong with it in any case is said as it is
            with self._answering():
                try:
                    ids = encode()
                except Exception as error:  # whatever a layer on features says of the ids that it is given
                    raise _refusal() from error
        _check(ids)

    def featuring(self) -> AbstractContextManager[None]:
        """Return a context in which the model gives features, also while its answers are judged."""
        return self.model.generating(None)

    def _predictions(self, tasks: list[str], features: Callable[[NDArray[np.int64]], Tensor]) -> dict[str, TaskResult]:
        def answer(rows: NDArray[np.int64]) -> list[str]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                ids = features(rows)
            _check(ids)
            return self.tokenizer.decode(ids.cpu().numpy())

        with self._answering():
            rows, parts = self.in_order(tasks[0], answer)
        answers = restored(np.array([text for part in parts for text in part], dtype=np.str_), rows)
        return {task: self._judged(task, answers) for task in tasks}

    def _judged(self, task: str, answers: NDArray[np.str_]) -> TaskResult:
        entry = self.data[task]
        assert isinstance(entry, TextTask)
        assert entry.test_targets is not None
        if metrics.get(entry.metric).kind == metrics.TEXT:
            return TaskResult(answers, entry.test_targets, entry.metric)
        scores = np.array([score_in(text) or 0.0 for text in answers.tolist()])
        return TaskResult(scores, np.asarray(entry.labels("test"), dtype=np.float64), entry.metric, answers=answers)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        with self.model.generating(self.longest):
            yield


def _check(ids: Tensor) -> None:
    if ids.is_floating_point():
        raise _refusal()


def _refusal() -> InputError:
    return InputError(
        "the method changes features, and the model generates answers, which it does from weights alone: choose a method that "
        "merges weights, or a model with heads (gpt2, roberta)"
    )
