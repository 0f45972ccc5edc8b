"""The columns that tables have beside those of the tasks, and the names that a task may therefore not have.

Tables define their frames by these names, plans refuse tasks by them before any work: a task of such a name would hide a column,
and its numbers would be those of another.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

LABEL, METHOD, RECORDS, METRICS, AVERAGE = "label", "method", "records", "metrics", "average"
DETAILS = (METHOD, "family", "select", "uses_test_labels", "trial", "seeds")
TIMES = ("seconds", "seconds_total")
DIFFERENCE = ("difference", "difference_low", "difference_high")
ENDS = ("_low", "_high", "_std")
"""What the columns of a value's interval and deviation end in."""
METHOD_HEADER, AVERAGE_HEADER, INTERVAL_HEADER, SECONDS_HEADER = "Method", "Average", "95% interval", "Seconds"
VERSUS = "vs "
"""What the header of the difference to a baseline begins with."""
LONGEST = 200
"""Bytes of a task's name: the files of its expert have longer names, and file systems end at 255."""

_OWN = {LABEL, RECORDS, METRICS, AVERAGE, *DETAILS, *TIMES, *DIFFERENCE, *(f"{AVERAGE}{end}" for end in ENDS)}
_HEADERS = {METHOD_HEADER, AVERAGE_HEADER, INTERVAL_HEADER, SECONDS_HEADER}


def hidden(tasks: Sequence[str]) -> tuple[str, str] | None:
    """Return the first task whose name is that of another column of their table, and why; None where there is none."""
    return _first(tasks, _column)


def refusal(tasks: Sequence[str]) -> tuple[str, str] | None:
    """Return the first task whose name neither tables nor files can carry, and why; None where all are fine."""
    return hidden(tasks) or _first(tasks, _file)


def _first(tasks: Sequence[str], check: Callable[[str, Sequence[str]], str]) -> tuple[str, str] | None:
    return next(((task, reason) for task in tasks if (reason := check(task, tasks))), None)


def _column(task: str, tasks: Sequence[str]) -> str:
    """Return what is wrong with a name as that of a column, "" where nothing is."""
    if task in _OWN or task in _HEADERS or task.startswith(VERSUS):
        return "tables have a column of their own of that name"
    other = next((name for name in tasks for end in ENDS if task == name + end), None)
    return f"tables have a column of that name for task {other!r}" if other is not None else ""


def _file(task: str, tasks: Sequence[str]) -> str:
    """Return what is wrong with a name as part of those of files, "" where nothing is."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in task):
        return "it has a character that cannot be printed"
    size = len(task.encode())
    return f"it is {size} bytes long, and the names of its files have room for {LONGEST}" if size > LONGEST else ""
