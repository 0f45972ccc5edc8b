"""Text tasks that are drawn by code."""

from __future__ import annotations

from fusionbench_lite.data.text import descriptions, mini
from fusionbench_lite.data.text.descriptions import Description
from fusionbench_lite.data.text.examples import Examples, examples


def names() -> tuple[str, ...]:
    """Return the names of the drawn tasks."""
    return mini.TASKS


def description(name: str) -> Description:
    """Return what a drawn task is."""
    return descriptions.described(name, mini.task(name), f"drawn task {name!r}")


def split(entry: Description, name: str, seed: int) -> Examples:
    """Return the examples of a split, "train" or "test", of a seed."""
    count = mini.TRAIN if name == "train" else mini.TEST
    rows = ((f"example {number}", row) for number, row in enumerate(mini.draw(entry.name, name, seed, count), 1))
    return examples(entry, rows, f"drawn {entry.name}, {name}, seed {seed}")
