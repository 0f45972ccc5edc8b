"""Selection rules: what they pick, what they need, and that they can be applied to a record afterwards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionbench_lite.evaluation.selection import RULES, USES_TEST_LABELS, choose

STEPS = st.dictionaries(st.integers(0, 500), st.floats(0, 1), min_size=1, max_size=8)


def test_each_rule_on_one_course():
    averages, losses = {0: 0.7, 50: 0.9, 100: 0.8}, {0: 3.0, 50: 2.0, 100: 1.0}
    assert [choose(rule, averages, losses) for rule in ("last", "best_test", "best_unsupervised")] == [100, 50, 100]


def test_only_best_test_looks_at_labels():
    assert set(RULES) > USES_TEST_LABELS
    assert {"best_test"} == USES_TEST_LABELS


@pytest.mark.parametrize("rule", RULES)
def test_nothing_to_choose_from(rule):
    assert choose(rule, {}, {}) is None


def test_the_unsupervised_rule_needs_held_out_losses():
    assert choose("best_unsupervised", {0: 0.5, 10: 0.6}, {}) is None
    assert choose("best_unsupervised", {0: 0.5, 10: 0.6}, {20: 0.1}) is None


@given(STEPS)
def test_best_is_at_least_last_and_first_of_equals(averages):
    best, last = choose("best_test", averages, {}), choose("last", averages, {})
    assert averages[best] >= averages[last]
    assert best == min(step for step, value in averages.items() if value == max(averages.values()))


@given(STEPS)
def test_where_lower_is_better_the_lowest_counts(averages):
    best = choose("best_test", averages, {}, higher=False)
    assert best == min(step for step, value in averages.items() if value == min(averages.values()))


def test_without_an_average_no_step_is_best_on_test_labels():
    averages = {0: None, 50: None}
    assert choose("best_test", averages, {0: 2.0, 50: 1.0}) is None
    assert choose("last", averages, {}) == 50
    assert choose("best_unsupervised", averages, {0: 2.0, 50: 1.0}) == 50


@given(STEPS)
def test_the_order_in_which_evaluations_are_listed_does_not_matter(averages):
    turned = dict(reversed(averages.items()))
    for rule in RULES:
        assert choose(rule, averages, averages) == choose(rule, turned, turned)
