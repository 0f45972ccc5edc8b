"""Labelled texts of one split, from rows as JSON or parquet hold them."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.text.descriptions import Description
from fusionbench_lite.errors import InputError, did_you_mean

_SHOWN = 60


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Examples:
    """`columns` {name: texts}, `labels` int64 class numbers or float64 scores [N]; `where` says whose they are in errors.

    `files` maps names of files to their SHA-256.
    """

    columns: Mapping[str, Sequence[str]]
    labels: NDArray[Any]
    where: str
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: NDArray[np.int64]) -> Examples:
        """Return some of the examples."""
        numbers_ = chosen.tolist()
        columns = {name: [texts[row] for row in numbers_] for name, texts in self.columns.items()}
        return dataclasses.replace(self, columns=columns, labels=self.labels[chosen])


def examples(
    entry: Description, rows: Iterable[tuple[str, Mapping[str, Any]]], where: str, files: Mapping[str, str] | None = None
) -> Examples:
    """Return the examples of rows {column: value}, each with the words that name it in errors, as "line 3".

    Raises InputError for a row without a column or a label, for a label that is none of the classes, and for no rows.
    """
    columns: dict[str, list[str]] = {name: [] for name in entry.columns}
    labels: list[float] = []
    for place, row in rows:
        at = f"{where}, {place}"
        for name, texts in columns.items():
            texts.append(_text(at, row, name, entry))
        labels.append(_label(at, row, entry))
    if not labels:
        raise InputError(f"{where} holds no example: put at least one there")
    return Examples(columns=columns, labels=as_labels(entry, labels), where=where, files=files or {})


def as_labels(entry: Description, labels: Sequence[float]) -> NDArray[Any]:
    """Return labels in the type of the task: int64 class numbers or float64 scores."""
    return np.array(labels, np.float64 if entry.classes is None else np.int64)


def _text(at: str, row: Mapping[str, Any], name: str, entry: Description) -> str:
    if name not in row:
        by = "text" if name in entry.text else "the template"
        raise InputError(
            f"{at} has no column {name!r}, which {by} of task {entry.name!r} names (it has {', '.join(map(str, row)) or 'none'}): "
            f"{did_you_mean(name, map(str, row))}"
        )
    value = row[name]
    if not isinstance(value, str):
        raise InputError(f"{at}: column {name!r} must be a text, got {_short(value)}: write it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{at}: column {name!r} holds half of a UTF-16 pair, as \\ud83d alone: write whole characters") from None
    return value


def _label(at: str, row: Mapping[str, Any], entry: Description) -> float:
    """Return the number of a row's class, or its score."""
    if row.get(entry.label) is None:
        raise InputError(f"{at} has no label ({entry.label!r}): add it, or drop the line")
    value, classes = row[entry.label], entry.classes
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if classes is None:
        if not is_number or not math.isfinite(value):
            raise InputError(f"{at}: label must be a finite number, got {_short(value)}")
        return float(value)
    if isinstance(value, str) and value in classes:
        return classes.index(value)
    if is_number and value in range(len(classes)):
        # Labels 1 to 5 of classes "1" to "5" would be read one class too high.
        if str(int(value)) in classes and classes.index(str(int(value))) != value:
            raise InputError(f"{at}: label {value} may be number {int(value)} or the name '{int(value)}': write names in quotes")
        return int(value)
    names = ", ".join(f"{number} {name}" for number, name in enumerate(classes[:8])) + ", ..." * (len(classes) > 8)
    raise InputError(f"{at}: label {_short(value)} is none of the {len(classes)} classes ({names}): correct it")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 4] + " ..."
