"""Inputs of unequal lengths: the order in which they are judged, how many at once, and scores of a head with one output."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusionbench_lite.data import TaskData
from fusionbench_lite.data.text import Tokens
from fusionbench_lite.evaluation.evaluator import Evaluator
from fusionbench_lite.evaluation.passes import MOST, PLACES, Passes
from fusionbench_lite.evaluation.results import TaskResult, score_in

CPU = torch.device("cpu")


def test_the_longest_run_first_and_passes_hold_so_many_places():
    lengths = np.random.default_rng(0).integers(1, 600, 700)
    seen = list(Passes(None, 600, CPU).run(lambda rows: rows, len(lengths), lengths))
    order = np.concatenate([rows for rows, _ in seen])
    assert sorted(order) == list(range(700))
    assert (np.diff(lengths[order]) <= 0).all()
    assert all(len(rows) * lengths[rows].max() <= PLACES for rows, _ in seen)
    assert max(len(rows) for rows, _ in seen) <= MOST["cpu"]
    assert len(seen[-2][0]) > len(seen[0][0])
    given = [len(rows) for rows, _ in Passes(64, 600, CPU).run(lambda rows: rows, len(lengths), lengths)]
    assert given == [64] * 10 + [60]


def test_a_pass_that_does_not_fit_is_halved():
    lengths, tried = np.full(40, 10), []

    def compute(rows: np.ndarray) -> int:
        tried.append(len(rows))
        if len(rows) > 12:
            raise torch.OutOfMemoryError
        return len(rows)

    passes = Passes(40, 10, CPU)
    assert sum(count for _, count in passes.run(compute, 40, lengths)) == 40
    assert tried[:3] == [40, 20, 10]


def test_a_pass_of_a_size_that_was_found_is_halved_until_it_fits():
    lengths = np.concatenate([np.full(8, 600), np.full(600, 8)])
    tried = []

    def compute(rows: np.ndarray) -> int:
        tried.append(len(rows))
        assert len(tried) < 200
        if len(rows) > 40:
            raise torch.OutOfMemoryError
        return len(rows)

    assert sum(count for _, count in Passes(None, 600, CPU).run(compute, len(lengths), lengths)) == 608
    assert sum(count > 40 for count in tried) == 3  # 250, 125, 63


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_predictions_are_in_the_order_of_the_examples(batch: int | None):
    texts = [np.full(length, 1 + number % 5, np.int32) for number, length in enumerate([3, 9, 1, 9, 4, 2, 7, 5])]
    labels = np.linspace(0, 5, len(texts))
    data = TaskData(
        name="task", classes=("score",), train_images=Tokens((), 0), train_labels=labels[:0], test_images=Tokens(texts, 0),
        test_labels=labels, metric="spearman",
    )  # fmt: skip

    def encode(inputs):
        mask = inputs["attention_mask"]
        return ((inputs["input_ids"] * mask).sum(1, keepdim=True) + 0.25).float()

    result = Evaluator(data={"task": data}, heads={"task": torch.nn.Identity()}, device=CPU, batch_size=batch, prepare=dict).task(
        "task", encode
    )
    assert result.predictions.tolist() == [text.sum() + 0.25 for text in texts]
    assert result.unreadable is None


def test_answers_that_hold_no_score_are_counted():
    answers = np.array(["3.0", " 4.5", "four", "", "nan", "inf", "1e1"])
    assert [score_in(text) for text in answers] == [3.0, 4.5, None, None, None, None, 10.0]
    result = TaskResult([score_in(text) or 0.0 for text in answers.tolist()], np.arange(7.0), "spearman", answers=answers)
    assert result.unreadable == 4
