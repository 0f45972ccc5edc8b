"""Text tasks that are drawn by code."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

from fusionbench_lite.data.text import descriptions
from fusionbench_lite.data.text.descriptions import Description
from fusionbench_lite.data.text.examples import Examples, examples

_MODULE = "fusionbench_lite.data.text.mini"


def names() -> tuple[str, ...]:
    """Return the names of the drawn tasks."""
    return tuple(_mini().TASKS) if importlib.util.find_spec(_MODULE) else ()


def description(name: str) -> Description:
    """Return what a drawn task is."""
    return descriptions.described(name, _mini().task(name), f"drawn task {name!r}")


def split(entry: Description, name: str, seed: int) -> Examples:
    """Return the examples of a split, "train" or "test", of a seed."""
    count = _mini().TRAIN if name == "train" else _mini().TEST
    rows = ((f"example {number}", row) for number, row in enumerate(_mini().draw(entry.name, name, seed, count), 1))
    return examples(entry, rows, f"drawn {entry.name}, {name}, seed {seed}")


@functools.cache
def _mini() -> ModuleType:
    """The drawing code: imported when a task is asked for, since most runs draw nothing."""
    return importlib.import_module(_MODULE)
