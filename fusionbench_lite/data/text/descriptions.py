"""What a text task is: its columns, labels, template and answers, of GLUE or from NAME.json."""

from __future__ import annotations

import dataclasses
import functools
import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import InputError, did_you_mean

_FILE = Path(__file__).with_name("glue.yaml")
_KEYS = ("text", "label", "classes", "metric", "template", "words", "score")
_METRICS = ("accuracy", "exact_match", "matthews", "f1", "spearman")
SCORE = "{:.1f}"
_MANY = 2
"""A head's model reads so many columns as a text or a pair of texts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """One task. `text` are the columns that are read, `label` that of the label; `classes` is None for scores.

    `template` is what a model that generates reads, `words` what it should answer for each class, `score` how a score is written as
    an answer. `rows` are the published numbers of examples by split, where there are any.
    """

    name: str
    text: tuple[str, ...]
    label: str = "label"
    classes: tuple[str, ...] | None = None
    metric: str = "accuracy"
    template: str | None = None
    words: tuple[str, ...] | None = None
    score: str = SCORE
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are needed: those that are read, and those that the template names."""
        return tuple(dict.fromkeys((*self.text, *fields_of(self.template))))

    def answer(self, label: float) -> str:
        """Return what a model should answer for a label."""
        if self.classes is None:
            return self.score.format(label)
        return (self.words or self.classes)[int(label)]


def glue_names() -> tuple[str, ...]:
    """Return the names of GLUE's tasks."""
    return tuple(_glue())


def glue(name: str) -> Description:
    """Return a task of GLUE; raises InputError for another name."""
    if name not in _glue():
        raise InputError(f"{name!r} is no task of GLUE: {did_you_mean(name, _glue())}")
    own = {key: value for key, value in _glue()[name].items() if key not in ("rows", "unlabelled")}
    return described(name, own, str(_FILE), _glue()[name]["rows"])


def unlabelled(name: str, split: str = "test") -> int:
    """Return how many texts the test split of a task of GLUE has, whose labels are not published; MNLI has two of them."""
    found = _glue()[name]["unlabelled"]
    return int(found if isinstance(found, int) else found[split])


def read(path: Path, name: str) -> Description:
    """Return the task that NAME.json describes; raises InputError naming the file, the key and the fix."""
    try:
        content = json.loads(path.read_bytes())  # bytes: a byte order mark or UTF-16 is understood
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}): write it anew") from error
    return described(name, content, str(path))


def described(name: str, content: Any, where: str, rows: Mapping[str, int] | None = None) -> Description:
    """Return the description that a mapping of the form of NAME.json holds; `where` says whose it is in errors."""
    if not isinstance(content, Mapping):
        raise InputError(f"{where} must hold an object with text, label and classes, got {type(content).__name__}")
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}: {did_you_mean(str(unknown[0]), _KEYS)}")
    text = _strings(where, "text", content.get("text"))
    if not text:
        raise InputError(f'{where}: "text" must list the columns that are read, such as ["sentence"]')
    metric = content.get("metric") or "accuracy"
    if metric not in _METRICS:
        raise InputError(f"{where}: unknown metric {metric!r}: {did_you_mean(str(metric), _METRICS)}")
    classes = _strings(where, "classes", content.get("classes"))
    _check_classes(where, metric, classes)
    words = _strings(where, "words", content.get("words"))
    if words is not None and len(words) != len(classes or ()):
        raise InputError(f"{where}: words has {len(words)} answers, classes {len(classes or ())} names: give one answer a class")
    if words is not None and len(set(words)) < len(words):
        raise InputError(f"{where}: words has one answer for two classes ({', '.join(words)}): give each an answer of its own")
    template, label = content.get("template"), content.get("label", "label")
    for key, value in (("template", template or ""), ("label", label), ("score", content.get("score", SCORE))):
        if not isinstance(value, str):
            raise InputError(f"{where}: {key} must be a string, got {value!r}")
    entry = Description(
        name=name, text=text, label=label, classes=classes, metric=metric, template=template or None, words=words,
        score=content.get("score", SCORE), rows=rows or {},
    )
    _check_template(where, entry)
    return entry


def fields_of(template: str | None) -> list[str]:
    """Return the columns that a template names, in order; raises ValueError where a brace is not one of a pair."""
    return [field for _, field, _, _ in string.Formatter().parse(template or "") if field is not None]


def _check_classes(where: str, metric: str, classes: tuple[str, ...] | None) -> None:
    if metric == "spearman":
        if classes is not None:
            raise InputError(f"{where}: metric spearman is of scores, but classes lists {len(classes)} names: leave one out")
        return
    if classes is None or len(classes) < _MANY or len(set(classes)) < len(classes):
        raise InputError(
            f'{where}: "classes" must list at least two different names in the order of the labels, such as ["negative", '
            '"positive"] (scores have metric spearman and no classes)'
        )


def _check_template(where: str, entry: Description) -> None:
    try:
        parts = [(field, form, conversion) for _, field, form, conversion in string.Formatter().parse(entry.template or "") if field
                 is not None]
        entry.score.format(1.0)
    except (ValueError, IndexError, KeyError) as error:
        raise InputError(f"{where}: template or score is not one ({error}): columns stand as {{column}}, braces as {{{{") from error
    for field, form, conversion in parts:
        if not field or form or conversion or any(sign in field for sign in ".["):
            raise InputError(f"{where}: template holds {{{field}}}, which names no column: write {{column}} alone")
    if entry.template is not None and not parts:
        raise InputError(f"{where}: template names no column, so that all examples are the same: write {{{entry.text[0]}}} in it")


def _strings(where: str, key: str, given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(entry, str) for entry in given):
        raise InputError(f"{where}: {key} must be a list of strings, got {given!r}")
    return tuple(given)


@functools.cache
def _glue() -> dict[str, dict[str, Any]]:
    import yaml

    content: dict[str, dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return content
