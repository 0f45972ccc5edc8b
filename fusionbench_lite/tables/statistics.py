"""Error bars of results: intervals of averages over tasks, and paired tests on the same examples.

Every interval here describes the sampling of test examples and nothing else. It does not hold the variance of training,
of the pretrained model or of the seed; that is what the standard deviation over seeds (`mean_std`) is for.
Values are as records hold them, proportions as fractions in [0, 1]; tables turn them into percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.intervals import Interval, percentiles
from fusionbench_lite.evaluation.intervals import wilson as wilson


def average_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of the unweighted mean of independent per-task values, recovered from their own intervals.

    The method of variance estimates recovery (Zou & Donner 2008, eq. 2): the distances from each value to its lower
    (upper) limit play the part of standard errors, so low = mean - sqrt(sum (v_t - l_t)^2) / T. From Wilson limits it
    is asymmetric as it should be, stays inside [0, 1], equals the Wilson interval for one task, and needs no resampling.
    Tasks are treated as given: the interval is about these tasks, not about others that could have been chosen.
    """
    if not values or len(values) != len(intervals):
        raise InputError(f"an average needs one interval per task, got {len(values)} values, {len(intervals)} intervals")
    mean = math.fsum(values) / len(values)
    below = math.sqrt(math.fsum((v - low) ** 2 for v, (low, _) in zip(values, intervals, strict=True)))
    above = math.sqrt(math.fsum((high - v) ** 2 for v, (_, high) in zip(values, intervals, strict=True)))
    return mean - below / len(values), mean + above / len(values)


def mean_std(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, sample standard deviation (n - 1 in the denominator; nan for one value) and n of runs over seeds."""
    if not values:
        raise InputError("mean over seeds of no runs: at least one value is needed")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan, 1
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)), len(values)


def mcnemar(only_a: int, only_b: int) -> tuple[float, float]:
    """Two-sided McNemar test from the discordant counts: (exact conditional p, mid-p).

    Given n = only_a + only_b, the smaller count k is Binomial(n, 1/2) when neither method is better. Exact: every
    outcome at least as extreme. Mid-p (Fagerland, Lydersen & Laake 2013): the outcomes exactly as extreme count half,
    which repairs the exact test's conservatism. Both are 1 when the methods never disagree.
    """
    if only_a < 0 or only_b < 0:
        raise InputError(f"McNemar needs counts of examples, got {only_a} and {only_b}")
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0, 1.0
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1, dtype=np.float64)))])
    log_mass = log_factorial[n] - log_factorial[: k + 1] - log_factorial[n - k : n + 1][::-1] - n * math.log(2)
    mass = np.exp(log_mass)
    point = float(mass[-1])
    if 2 * k == n:
        return 1.0, 1.0 - point / 2
    tail = math.fsum(mass[:-1])
    return min(1.0, 2 * (tail + point)), min(1.0, 2 * tail + point)


def stratified_bootstrap(
    strata: Sequence[tuple[float, NDArray[Any]]], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, Interval]:
    """Percentile bootstrap of sum_s weight_s mean(x_s), examples drawn with replacement inside each stratum.

    strata: (weight, per-example values [N_s]). Drawing N_s examples with replacement is a multinomial over the distinct
    values, so the cost does not grow with N_s; differences of correctness have only a few. Returns (estimate, interval).
    """
    estimate, draws = stratified_draws(strata, resamples=resamples, seed=seed)
    return estimate, percentiles(draws, level)


def stratified_draws(
    strata: Sequence[tuple[float, NDArray[Any]]], *, resamples: int, seed: int = 0
) -> tuple[float, NDArray[np.float64]]:
    """Return the estimate of `stratified_bootstrap` and its resampled values [resamples]."""
    rng = np.random.default_rng(seed)
    estimate, draws = 0.0, np.zeros(resamples)
    for weight, values in strata:
        distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
        size = int(counts.sum())
        if size == 0:
            raise InputError("bootstrap of a task without examples: every task needs at least one")
        estimate += weight * float(distinct @ counts) / size
        draws += weight * (rng.multinomial(size, counts / size, size=resamples) @ distinct) / size
    return estimate, draws


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two methods on the same test examples: a minus b.

    difference and interval: of the average over tasks, fractions where it is in percent. only_a, only_b: pooled examples
    that one alone has right, of the tasks that are judged example by example. exact_p, mid_p: McNemar over those; None where
    there are none, or where the same example was judged several times (seeds), since the test needs independent examples.
    Pooling weighs tasks by their examples, the difference weighs them equally.
    """

    difference: float
    interval: Interval
    only_a: int
    only_b: int
    examples: int
    exact_p: float | None
    mid_p: float | None


def paired_difference(
    correct_a: Mapping[str, NDArray[Any]],
    correct_b: Mapping[str, NDArray[Any]],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Compare two methods on the same examples: correct_x[task] is bool [N_task], in the same order for both.

    The interval is a paired bootstrap stratified by task; it collapses to a point where the methods never disagree.
    Raises InputError when the tasks or their numbers of examples differ.
    """
    if set(correct_a) != set(correct_b) or not correct_a:
        raise InputError(f"a paired comparison needs the same tasks, got {sorted(correct_a)} and {sorted(correct_b)}")
    strata, only_a, only_b, examples = [], 0, 0, 0
    for task in correct_a:
        a, b = np.asarray(correct_a[task], dtype=bool), np.asarray(correct_b[task], dtype=bool)
        if a.shape != b.shape or a.ndim != 1:
            raise InputError(f"task '{task}': a paired comparison needs the same examples, got {a.shape} and {b.shape}")
        strata.append((1 / len(correct_a), a.astype(np.float64) - b))
        only_a, only_b, examples = only_a + int((a & ~b).sum()), only_b + int((b & ~a).sum()), examples + a.size
    estimate, interval = stratified_bootstrap(strata, level=level, resamples=resamples, seed=seed)
    exact_p, mid_p = mcnemar(only_a, only_b)
    return Paired(
        difference=estimate, interval=interval, only_a=only_a, only_b=only_b, examples=examples, exact_p=exact_p, mid_p=mid_p
    )

