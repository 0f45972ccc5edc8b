"""What judging a model on a task gives: predictions and labels, and from them the value of the task's metric."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation import measures, metrics
from fusionbench_lite.evaluation.intervals import Interval
from fusionbench_lite.evaluation.measures import Measure
from fusionbench_lite.evaluation.metrics import Metric


@dataclasses.dataclass(frozen=True, eq=False)
class TaskResult:
    """`predictions` and `labels` [N] in the order of the test examples, and the `metric` they are judged by.

    Classes are integers, scores floats, generated answers strings, as the metric wants them; lists will do. `answers` [N] are
    the texts that scores were read in, see `score_in`; `confidence` is the mean probability of the predicted classes, None where
    there are none. Raises InputError for an unknown metric, for another kind of predictions, and where their numbers differ.
    """

    predictions: NDArray[Any]
    labels: NDArray[Any]
    metric: str = "accuracy"
    answers: NDArray[Any] | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        metric = metrics.get(self.metric)
        for name in ("predictions", "labels"):
            object.__setattr__(self, name, metric.array(getattr(self, name), name))
        if len(self.predictions) != len(self.labels):
            raise InputError(f"{metric.measure.label}: {len(self.predictions)} predictions for {len(self.labels)} labels")

    @property
    def unreadable(self) -> int | None:
        """How many answers hold no score and count as 0.0; None where predictions were not read in texts."""
        return None if self.answers is None else sum(score_in(text) is None for text in self.answers.tolist())

    @property
    def measure(self) -> Measure:
        """Name, unit and direction of the metric."""
        return self._metric.measure

    @functools.cached_property
    def correct(self) -> NDArray[np.bool_] | None:
        """Which examples are right, bool [N]; None for a metric of the whole set."""
        return self._metric.correct(self.predictions, self.labels)

    @functools.cached_property
    def value(self) -> float:
        """The value of the metric: a fraction where its unit is percent."""
        return self._metric.value(self.predictions, self.labels)

    @functools.cached_property
    def interval(self) -> Interval:
        """The 95 % interval of the value, for the sampling of test examples."""
        return self._metric.interval(self.predictions, self.labels)

    @property
    def _metric(self) -> Metric:
        return metrics.get(self.metric)


Evaluation = Mapping[str, TaskResult]


def score_in(text: str) -> float | None:
    """Return the number that an answer is, None where it is none, or not finite."""
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) else None


def shared(evaluation: Evaluation) -> Measure | None:
    """Return the measure of the average over tasks, None where units or directions differ."""
    return measures.shared(result.measure for result in evaluation.values())


def average(evaluation: Evaluation) -> float | None:
    """Return the unweighted mean over tasks, None where units or directions differ."""
    if shared(evaluation) is None:
        return None
    return float(np.mean([result.value for result in evaluation.values()]))
