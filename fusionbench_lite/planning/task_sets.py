"""Task sets: a number, a name or a list of task names becomes the tasks of a run."""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionbench_lite.base.task_sets import task_sets
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.evaluation.columns import refusal


@dataclasses.dataclass(frozen=True)
class TaskSet:
    """`label` names the set in records and tables; `names` are the tasks in order."""

    label: str
    names: tuple[str, ...]


def resolve(value: Any, data_dir: Path | None, others: Sequence[str] = ()) -> TaskSet:
    """Return the task set that the `tasks` key means.

    A number or name is looked up in the configuration's task_sets.yaml; a list holds names of tasks of these sets or of
    `others`. Raises InputError for
    an unknown set or task with the nearest one, for an empty or repeated task, for a missing data directory.
    """
    if data_dir is not None and not os.path.isdir(data_dir):  # noqa: PTH112 (no error for a name that is too long)
        raise InputError(f"data_dir {data_dir} is not a directory: give the folder that holds the files of the tasks")
    sets = task_sets()
    if isinstance(value, bool) or not isinstance(value, (int, str, Sequence)):
        raise InputError(f"tasks must be a number, a name or a list of task names, got {value!r}")
    if isinstance(value, (int, str)):
        label = str(value)
        if label in sets:
            return _named(label, sets[label], data_dir)
        value = [label]
    if not value:
        raise InputError("tasks is empty: give at least one task name")
    available = sorted({name for entry in sets.values() for name in entry["tasks"]} | set(others))
    names = tuple(_spelled(name, available) for name in value)
    for name in names:
        if name not in available:
            if len(names) == 1 and re.fullmatch(r"\[.*\]", name):
                raise InputError(f"unknown task {name!r}: for a list of tasks write tasks={name}, without the inner quotes")
            choices = [*sets, *available] if len(names) == 1 else available
            raise InputError(f"unknown task or task set {name!r}: {did_you_mean(name, choices)}")
        if names.count(name) > 1:
            raise InputError(f"tasks lists {name!r} {names.count(name)} times: list each task once")
    if (refused := refusal(names)) is not None:
        task, reason = refused
        where = f" in {data_dir}" if data_dir is not None else ""
        raise InputError(f"a task cannot be called {task!r}: {reason}; rename {task}.npz and {task}.json{where}")
    label = "+".join(names)
    return TaskSet(f"[{label}]" if label in sets else label, names)


def _spelled(name: Any, available: Sequence[str]) -> str:
    """Return a task's name as its files spell it: an accent may be a character of its own. Raises InputError for a value."""
    if isinstance(name, bool) or not isinstance(name, (int, str)):
        raise InputError(
            f"tasks lists {'null' if name is None else repr(name)}, which is no name: put names that read as values in quotes, as "
            "in tasks=['1e3','null']"
        )
    composed = unicodedata.normalize("NFC", str(name))
    alike = [one for one in available if unicodedata.normalize("NFC", one) == composed]
    return alike[0] if len(alike) == 1 else str(name)


def _named(label: str, entry: dict[str, Any], data_dir: Path | None) -> TaskSet:
    if entry.get("needs_data_dir") and data_dir is None:
        raise InputError(f"tasks={label} reads files of the tasks: add data_dir=FOLDER")
    return TaskSet(label, tuple(entry["tasks"]))
