"""What would make wrong numbers without a word: an expert's order of classes, answers that are never generated whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fusionbench_lite.data.text import TextTask, Tokenizer
from fusionbench_lite.errors import InputError
from fusionbench_lite.models.language import read_config
from fusionbench_lite.models.language.answers import ANSWER
from fusionbench_lite.weights.stored.beside import CONFIG


def class_order(task: TextTask, place: Path) -> None:
    """Raise InputError where an expert's config.json names the classes of a task in another order than the task does."""
    if not (place / CONFIG).is_file():  # an adapter has none
        return
    named = read_config(place).get("id2label")
    if not isinstance(named, Mapping):
        return
    labels = [str(named.get(str(number))).casefold() for number in range(len(named))]
    classes = [name.casefold() for name in task.classes]
    if labels != classes and sorted(labels) == sorted(classes):
        raise InputError(
            f"task {task.name!r}: its expert has the classes in the order {', '.join(labels)} (id2label of {place / CONFIG}), the "
            f"task {', '.join(classes)}: give them in the expert's order in {task.name}.json, labels by name"
        )


def answers_fit(data: Mapping[str, TextTask], tokenizer: Tokenizer) -> None:
    """Raise InputError for an answer that generation would end within."""
    for task, entry in data.items():
        words = [] if entry.words is None else list(dict.fromkeys(entry.words))
        for word, ids in zip(words, tokenizer.encode(words, None, ANSWER + 1), strict=True):
            if len(ids) > ANSWER:  # the decoder's start stands where the end of the text does here
                raise InputError(
                    f"task {task!r}: the answer {word!r} has more than the {ANSWER - 1} tokens that are generated: give a shorter "
                    f"one in words of {task}.json"
                )
