"""What a task is judged by, one entry per metric: its value and interval from predictions and labels.

Torch is not needed, and scikit-learn and scipy are imported when a value is computed: tables read records with numpy alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.evaluation.intervals import Floats, Interval, percentiles, resample, wilson
from fusionbench_lite.evaluation.measures import ACCURACY, Measure

Array = NDArray[Any]
CLASSES, SCORES, TEXT = "classes", "scores", "text"
_FITS = {CLASSES: "iu", SCORES: "iuf", TEXT: "U"}


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a measure is computed. `kind` is what predictions and labels are: CLASSES int64 [N], SCORES float64 [N] or TEXT
    str [N].

    Judged example by example (`per_example`): the value is the part that is `correct`, its interval Wilson's. Otherwise a
    metric of the whole set: `whole(predictions, labels)` is its value, `weighted(predictions [K], labels [K], counts [R, K])`
    the same for R resamples that hold example k counts[r, k] times, for the percentile bootstrap.
    """

    measure: Measure
    kind: str = CLASSES
    whole: Callable[[Array, Array], float] | None = None
    weighted: Callable[[Array, Array, Floats], Floats] | None = None

    @property
    def per_example(self) -> bool:
        """Whether single examples are right or wrong."""
        return self.weighted is None

    def check(self, predictions: Array, labels: Array) -> float:
        """Return the value by numpy alone, for readers of records."""
        if self.weighted is None:
            return float(np.mean(predictions == labels))
        values = self.weighted(self.array(predictions), self.array(labels, "labels"), np.ones((1, len(labels))))
        return float(values[0])

    def array(self, values: Array | Sequence[Any], what: str = "predictions") -> Array:
        """Return predictions or labels [N] in the type of the metric's kind. Raises InputError for another kind."""
        checked, label = np.asarray(values), self.measure.label
        if checked.ndim != 1 or not len(checked) or checked.dtype.kind not in _FITS[self.kind]:
            raise InputError(
                f"{label} needs {what} that are {self.kind} [N], at least one, got {checked.dtype} of shape {checked.shape}"
            )
        if self.kind == SCORES and not np.isfinite(checked).all():
            raise InputError(f"{label} needs finite {what}, {int((~np.isfinite(checked)).sum())} of {len(checked)} are not")
        return checked if self.kind == TEXT else checked.astype(np.int64 if self.kind == CLASSES else np.float64)

    def correct(self, predictions: Array, labels: Array) -> NDArray[np.bool_] | None:
        """Return which examples are right, bool [N]; None for a metric of the whole set."""
        return np.asarray(predictions == labels) if self.per_example else None

    def value(self, predictions: Array, labels: Array) -> float:
        """Return the value; it is never nan, see the functions of the metric for degenerate cases."""
        if self.whole is None:
            return float(np.mean(predictions == labels))
        return self.whole(predictions, labels)

    def interval(self, predictions: Array, labels: Array) -> Interval:
        """Return the 95 % interval for the sampling of test examples, which holds the value.

        Of a metric of the whole set: percentile bootstrap of RESAMPLES resamples, seeded by the metric's name and the number
        of examples. It has no width where no resample can differ, as for predictions without an error.
        """
        if self.weighted is None:
            return wilson(int((predictions == labels).sum()), len(labels))
        weighted = self.weighted
        draws = resample(
            lambda columns, counts: weighted(columns[0], columns[1], counts), [predictions, labels], self.measure.name, len(labels)
        )
        (low, high), value = percentiles(draws), self.value(predictions, labels)
        return min(low, value), max(high, value)

    def differences(self, pairs: Sequence[tuple[Array, Array]], labels: Array, *key: object) -> Floats:
        """Return the value of a minus that of b, averaged over pairs (a, b) of predictions [N], in RESAMPLES resamples [R].

        Everything is drawn together, since all pairs were judged on the same examples; `key` names the random stream.
        """
        weighted = self.weighted
        if weighted is None:
            raise InputError(f"{self.measure.label} is judged example by example: compare correctness")

        def statistic(columns: Sequence[Array], counts: Floats) -> Floats:
            true, *scored = columns
            first, second = (sum(weighted(column, true, counts) for column in scored[at::2]) for at in (0, 1))
            return np.asarray((first - second) / len(pairs))

        return resample(statistic, [labels, *(column for pair in pairs for column in pair)], self.measure.name, *key)


def _matthews(predictions: Array, labels: Array) -> float:
    """Matthews correlation (Gorodkin 2004 for more than two classes); 0 where predictions or labels are of one class."""
    from sklearn.metrics import matthews_corrcoef

    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def _matthews_weighted(predictions: Array, labels: Array, counts: Floats) -> Floats:
    """Gorodkin 2004, eq. 8, from the numbers of each class: (c s - sum p_k t_k) / sqrt((s^2 - sum p_k^2)(s^2 - sum t_k^2))."""
    classes = np.union1d(predictions, labels)
    predicted = counts @ (predictions[:, None] == classes).astype(np.float64)
    true = counts @ (labels[:, None] == classes).astype(np.float64)
    size, correct = counts.sum(1), counts @ (predictions == labels).astype(np.float64)
    spread = (size**2 - (predicted**2).sum(1)) * (size**2 - (true**2).sum(1))
    return _divided(correct * size - (predicted * true).sum(1), np.sqrt(spread))


def _spearman(predictions: Array, labels: Array) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where predictions or labels are constant, which rank nothing
    (the correlation is undefined there)."""
    from scipy.stats import spearmanr

    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(spearmanr(predictions, labels).statistic)


def _spearman_weighted(predictions: Array, labels: Array, counts: Floats) -> Floats:
    """Pearson's correlation of the ranks in each resample."""
    first, second = (_centred_ranks(values, counts) for values in (predictions, labels))
    spread = (counts * first**2).sum(1) * (counts * second**2).sum(1)
    return np.clip(_divided((counts * first * second).sum(1), np.sqrt(spread)), -1.0, 1.0)


def _centred_ranks(values: Array, counts: Floats) -> Floats:
    """Return mean ranks minus their mean (n + 1) / 2, [R, K], where value k is there counts[r, k] times."""
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sizes = np.add.reduceat(counts[:, order], np.searchsorted(group[order], np.arange(len(distinct))), axis=1)
    ranks = np.cumsum(sizes, axis=1) - (sizes - 1) / 2 - (counts.sum(1, keepdims=True) + 1) / 2
    return np.asarray(ranks[:, group])


def _f1(predictions: Array, labels: Array) -> float:
    """F1 of class 1, as GLUE judges pairs; every other class counts as not 1. 0 where 1 is neither predicted nor true."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels == 1, predictions == 1, zero_division=0))


def _f1_weighted(predictions: Array, labels: Array, counts: Floats) -> Floats:
    positive, true = (predictions == 1).astype(np.float64), (labels == 1).astype(np.float64)
    return _divided(2 * (counts @ (positive * true)), counts @ positive + counts @ true)


def _divided(above: Floats, below: Floats) -> Floats:
    """Return above / below, 0 where below is 0: a resample of one class, or of one rank, shows no association."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


METRICS = {
    metric.measure.name: metric
    for metric in (
        Metric(ACCURACY),
        Metric(Measure("exact_match", "exact match"), kind=TEXT),
        Metric(Measure("matthews", "Matthews correlation"), whole=_matthews, weighted=_matthews_weighted),
        Metric(Measure("f1", "F1"), whole=_f1, weighted=_f1_weighted),
        Metric(Measure("spearman", "Spearman correlation"), kind=SCORES, whole=_spearman, weighted=_spearman_weighted),
    )
}


def get(name: str) -> Metric:
    """Return the metric of a name. Raises InputError with the nearest name."""
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}: {did_you_mean(name, METRICS)}")
    return METRICS[name]
