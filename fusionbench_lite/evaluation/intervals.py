"""Intervals for the sampling of test examples: Wilson's for proportions, the percentile bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.base import randomness
from fusionbench_lite.errors import InputError

Interval = tuple[float, float]
Floats = NDArray[np.float64]
Statistic = Callable[[Sequence[NDArray[Any]], Floats], Floats]
"""Maps the columns of K distinct examples, and how often each was drawn [R, K], to one value per resample [R]."""

RESAMPLES = 2_000
"""Of a bootstrap: the ends of a 95 % interval then rest on 50 resamples each (Efron & Tibshirani 1993, section 14.3: 1,000
are enough)."""
_DRAWN_AT_ONCE = 4_000_000


def wilson(correct: int, examples: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927, eq. for the two roots of the score test).

    Unlike p +- z sqrt(p(1-p)/n) it stays inside [0, 1] and keeps a width at 0 and 100 percent, where experts often are.
    Raises InputError unless 0 <= correct <= examples and examples >= 1.
    """
    if examples < 1 or not 0 <= correct <= examples:
        raise InputError(f"accuracy needs 0 <= correct <= examples and at least one example, got {correct} of {examples}")
    z2 = _quantile(level) ** 2
    # Written for the counts, so that correct -> examples - correct mirrors the interval to the last bit but one.
    centre = (correct + z2 / 2) / (examples + z2)
    half = math.sqrt(z2 * (correct * (examples - correct) / examples + z2 / 4)) / (examples + z2)
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == examples else min(1.0, centre + half)
    return low, high


def percentiles(draws: Floats, level: float = 0.95) -> Interval:
    """The percentile interval of resampled values [R]."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resample(statistic: Statistic, columns: Sequence[NDArray[Any]], *key: object, resamples: int = RESAMPLES) -> Floats:
    """Return a statistic [R] of resamples of N examples, drawn with replacement.

    columns: what is known of every example, each [N]; a pair of methods gives both predictions, so that they are drawn
    together. Drawing N examples is a multinomial over the distinct ones, which are sorted: the values depend on `key`
    and on what the examples are, never on their order. Raises InputError without examples.
    """
    if len(columns[0]) == 0:
        raise InputError("bootstrap of a task without examples: every task needs at least one")
    distinct, counts = _distinct(columns)
    size, generator = int(counts.sum()), randomness.generator("bootstrap", *key)
    at_once = max(1, _DRAWN_AT_ONCE // len(counts))
    parts = [
        statistic(distinct, generator.multinomial(size, counts / size, size=min(at_once, resamples - done)).astype(np.float64))
        for done in range(0, resamples, at_once)
    ]
    return np.concatenate(parts)


def _distinct(columns: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    """Return the distinct rows of the columns, sorted, and how often each is there."""
    values, codes = zip(*(np.unique(column, return_inverse=True) for column in columns), strict=True)
    rows, counts = np.unique(np.stack(codes, axis=1), axis=0, return_counts=True)
    return [levels[rows[:, number]] for number, levels in enumerate(values)], counts


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"a confidence level lies between 0 and 1, got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)
