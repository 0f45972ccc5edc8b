"""Intervals and paired tests against hand values, brute force and their laws."""

from __future__ import annotations

import math
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionbench_lite.errors import InputError
from fusionbench_lite.tables import statistics


@pytest.mark.parametrize(
    ("correct", "examples", "low", "high"),
    [(0, 10, 0.0, 0.2775328), (5, 10, 0.2365931, 0.7634069), (10, 10, 0.7224672, 1.0), (95, 100, 0.8882485, 0.9784557)],
)
def test_wilson_values(correct, examples, low, high):
    assert statistics.wilson(correct, examples) == pytest.approx((low, high), abs=2e-5)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_laws(case):
    correct, examples = case
    low, high = statistics.wilson(correct, examples)
    assert 0 <= low <= correct / examples <= high <= 1
    mirrored = statistics.wilson(examples - correct, examples)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)
    wider = statistics.wilson(correct, examples, 0.99)
    assert wider[0] <= low
    assert wider[1] >= high
    assert high - low >= statistics.wilson(10 * correct, 10 * examples)[1] - statistics.wilson(10 * correct, 10 * examples)[0]


def test_average_of_one_task_is_its_own_interval():
    interval = statistics.wilson(430, 500)
    assert statistics.average_interval([0.86], [interval]) == pytest.approx(interval)
    with pytest.raises(InputError):
        statistics.average_interval([0.5, 0.5], [interval])


def test_average_interval_covers():
    rng = np.random.default_rng(0)
    truth = np.array([0.6, 0.8, 0.95, 0.99])
    inside = 0
    for _ in range(600):
        counts = rng.binomial(200, truth)
        low, high = statistics.average_interval(list(counts / 200), [statistics.wilson(int(c), 200) for c in counts])
        inside += low <= truth.mean() <= high
    assert 0.92 <= inside / 600 <= 0.98


def _exact(k: int, n: int) -> tuple[float, float]:
    tail = sum(comb(n, i) for i in range(k + 1)) / 2**n
    point = comb(n, k) / 2**n
    if 2 * k == n:
        return 1.0, 1.0 - point
    return min(1.0, 2 * tail), 2 * tail - point


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_equals_brute_force(only_a, only_b):
    exact, mid = statistics.mcnemar(only_a, only_b)
    assert (exact, mid) == statistics.mcnemar(only_b, only_a)
    if only_a + only_b == 0:
        assert (exact, mid) == (1.0, 1.0)
        return
    expected = _exact(min(only_a, only_b), only_a + only_b)
    assert exact == pytest.approx(expected[0])
    assert mid <= exact + 1e-12
    if only_a != only_b:
        assert mid == pytest.approx(expected[1])


def test_mean_and_sample_deviation_over_seeds():
    assert statistics.mean_std([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, math.sqrt(7 / 3), 3))
    mean, deviation, count = statistics.mean_std([0.5])
    assert (mean, count) == (0.5, 1)
    assert math.isnan(deviation)


def test_paired_difference_weighs_tasks_equally_and_is_seeded():
    a = {"small": np.array([True] * 10), "large": np.array([True, False] * 500)}
    b = {"small": np.array([False] * 10), "large": np.array([True, False] * 500)}
    paired = statistics.paired_difference(a, b)
    assert paired.difference == pytest.approx(0.5)
    assert (paired.only_a, paired.only_b, paired.examples) == (10, 0, 1010)
    assert paired == statistics.paired_difference(a, b)
    reverse = statistics.paired_difference(b, a)
    assert reverse.difference == pytest.approx(-0.5)
    same = statistics.paired_difference(a, a)
    assert same.interval == (0.0, 0.0)
    with pytest.raises(InputError, match="same examples"):
        statistics.paired_difference(a, {**b, "small": b["small"][:5]})


def test_paired_interval_covers():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(150):
        first = rng.random((2, 300)) < 0.8
        second = np.where(rng.random((2, 300)) < 0.1, ~first, first)
        truth = 0.1 * 0.6  # a flipped 0.8 becomes 0.2: the second is worse by a tenth of the gap
        paired = statistics.paired_difference(
            dict(zip("ab", first, strict=True)), dict(zip("ab", second, strict=True)), resamples=800, seed=trial
        )
        inside += paired.interval[0] <= truth <= paired.interval[1]
    assert inside / 150 >= 0.88
