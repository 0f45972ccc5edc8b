"""The text tasks of the suite ``mini_text``: English sentences and pairs of them, drawn by code from a seed.

    draw("entailment", "train", seed=0, count=2)
    [{"premise": "Every small dog is red.", "hypothesis": "Every small beagle is red.", "label": "entailment"}, ...]

The hash of its texts decides whether an example is one of training or of testing, whatever the seed: none is both. Within
one drawing all are different, and classes are balanced. Four labels of a hundred are wrong, as those that people give are:
96 is about the best that a model can reach.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusionbench_lite.base.randomness import generator
from fusionbench_lite.data.text.mini import pairs, sentences
from fusionbench_lite.data.text.mini.drawing import Choices

TRAIN, TEST = 4000, 1000
"""Examples of a task."""
WRONG = 0.04
"""The part of the labels that are wrong."""
_TEST_PART = 64
"""Of 256 values of the first byte of an example's hash, those of testing."""


@dataclass(frozen=True)
class Drawing:
    """A drawn task: its columns, classes, the prompt and the answers of a model that generates, and one example of a label."""

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    template: str
    words: tuple[str, ...]
    one: Callable[[Choices, int], dict[str, str]]


_PAIR = ("first", "second")
DRAWINGS: dict[str, Drawing] = {
    "sentiment": Drawing(
        columns=("sentence",), classes=("negative", "positive"), template="sentiment : {sentence}",
        words=("negative", "positive"), one=sentences.sentiment,
    ),
    "acceptability": Drawing(
        columns=("sentence",), classes=("unacceptable", "acceptable"), template="acceptability : {sentence}",
        words=("unacceptable", "acceptable"), one=sentences.acceptability,
    ),
    "topic": Drawing(
        columns=("sentence",), classes=("sports", "food", "music", "travel"), template="topic : {sentence}",
        words=("sports", "food", "music", "travel"), one=sentences.topic,
    ),
    "tense": Drawing(
        columns=("sentence",), classes=("past", "present", "future"), template="tense : {sentence}",
        words=("past", "present", "future"), one=sentences.tense,
    ),
    "number": Drawing(
        columns=("sentence",), classes=("singular", "plural"), template="number : {sentence}", words=("singular", "plural"),
        one=sentences.number,
    ),
    "paraphrase": Drawing(
        columns=_PAIR, classes=("different", "paraphrase"), template="paraphrase : {first} {second}", words=("different", "same"),
        one=pairs.paraphrase,
    ),
    "entailment": Drawing(
        columns=("premise", "hypothesis"), classes=("not_entailment", "entailment"),
        template="entailment : {premise} {hypothesis}", words=("no", "yes"), one=pairs.entailment,
    ),
    "answer": Drawing(
        columns=("question", "sentence"), classes=("not_answer", "answer"), template="answer : {question} {sentence}",
        words=("wrong", "right"), one=pairs.answer,
    ),
}
TASKS = tuple(DRAWINGS)
"""The names of the tasks, in their order."""


def task(name: str) -> dict[str, Any]:
    """Return what the NAME.json of a task would hold."""
    drawing = DRAWINGS[name]
    return {
        "text": list(drawing.columns), "label": "label", "classes": list(drawing.classes), "metric": "accuracy",
        "template": drawing.template, "words": list(drawing.words),
    }


def draw(name: str, split: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Return `count` examples of a split, "train" or "test", as the lines of a file would hold them.

    Raises KeyError for a task that is not drawn.
    """
    drawing = DRAWINGS[name]
    stream = generator(seed, "draw", name, split)
    labels = stream.permutation(np.arange(count) % len(drawing.classes))
    moved = (stream.random(count) < WRONG) * stream.integers(1, len(drawing.classes), count)
    given = ((labels + moved) % len(drawing.classes)).tolist()
    choices, seen, rows = Choices(stream), set(), []
    for label, shown in zip(labels.tolist(), given, strict=True):
        while True:
            columns = drawing.one(choices, label)
            texts = tuple(columns.values())
            if texts not in seen and _split_of(texts) == split:
                break
        seen.add(texts)
        rows.append({**columns, "label": drawing.classes[shown]})
    return rows


def _split_of(texts: tuple[str, ...]) -> str:
    first = hashlib.sha256("\0".join(texts).encode()).digest()[0]
    return "test" if first < _TEST_PART else "train"
