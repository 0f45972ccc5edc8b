"""Answers that a model generates, judged: scores are read in texts, and what holds none counts as 0.0."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fusionbench_lite.data.text import TextTask, Tokens
from fusionbench_lite.suites.text.judging import GeneratingEvaluator
from tests.adaptation.test_adapt_language import double

SAID = ["3.2", "no idea", "nan", "5.0", "1.4"]
LABELS = np.array([3.0, 2.0, 4.0, 5.0, 1.0])


class Speaker:
    """A tokenizer whose ids are the numbers of what is said."""

    def decode(self, ids: Any) -> list[str]:
        return [SAID[row[0]] for row in ids]


def test_an_answer_without_a_score_counts_as_zero():
    texts = Tokens([np.array([number] * (1 + number % 3), dtype=np.int32) for number in range(5)], 0)
    task = TextTask(
        name="stsb", classes=("score",), train_images=texts, train_labels=LABELS, test_images=texts, test_labels=LABELS,
        metric="spearman", test_targets=np.array([f"{label:.1f}" for label in LABELS]),
    )
    evaluator = GeneratingEvaluator(
        data={"stsb": task}, heads={}, device=torch.device("cpu"), prepare=dict, model=double("t5")[1],
        tokenizer=Speaker(), longest=5,  # type: ignore[arg-type]
    )
    found = evaluator.task("stsb", lambda inputs: inputs["input_ids"][:, :1])  # type: ignore[index, call-overload]
    assert found.predictions.tolist() == [3.2, 0.0, 0.0, 5.0, 1.4]
    assert found.answers is not None
    assert found.answers.tolist() == SAID
    assert found.unreadable == 2
    ranks = np.array([4.0, 1.5, 1.5, 5.0, 3.0]), np.array([3.0, 2.0, 4.0, 5.0, 1.0])
    np.testing.assert_allclose(found.value, np.corrcoef(*ranks)[0, 1], rtol=1e-12)
