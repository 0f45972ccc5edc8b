"""The statistics of a cell, by name: what is read off the records of its runs, or off packaged data without a run."""

from __future__ import annotations

import dataclasses

from fusionbench_lite.errors import InputError, did_you_mean

PERCENT, FRACTION, NORMALIZED = "percent", "fraction", "normalized"
SECONDS, MEGABYTES, COUNT = "seconds", "megabytes", "count"
UNITS = (PERCENT, FRACTION, NORMALIZED, SECONDS, MEGABYTES, COUNT)
REDUCTIONS = ("min", "max", "mean")

_ARGUMENTS = {
    "seconds": ("merge", "svd", "adapt", "total"),
    "parameters": ("total", "learned", "extra", "relative"),
    "size": ("train", "validation", "test", "classes"),
}
_FREE = ("task", "normalized")
"""Those whose argument is the name of a task."""
_PLAIN = ("average", "average_seen", "average_unseen", "gain", "peak_bytes")
_RELATIVE = ("gain", "normalized")
"""Those that are read beside another row's records."""
_COUNTED = ("parameters", "size")
"""Those that need no run."""
_SCORES = ("task", "average", "average_seen", "average_unseen")


@dataclasses.dataclass(frozen=True)
class Statistic:
    """`name` and its `argument`: task:sun397 is ("task", "sun397")."""

    name: str
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.argument}" if self.argument else self.name

    @property
    def is_relative(self) -> bool:
        """Whether it is read beside another row's records."""
        return self.name in _RELATIVE

    @property
    def needs_run(self) -> bool:
        """Whether it is read off records."""
        return self.name not in _COUNTED

    @property
    def is_score(self) -> bool:
        """Whether it is a value of tasks, with an interval of the sampling of their examples."""
        return self.name in (*_SCORES, *_RELATIVE)

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return self.is_score

    @property
    def unit(self) -> str:
        """The unit where no published number has another."""
        if self.name == "normalized" or str(self) == "parameters:relative":
            return NORMALIZED
        units = {"seconds": SECONDS, "peak_bytes": MEGABYTES, "parameters": COUNT, "size": COUNT}
        return units.get(self.name, PERCENT)


def parsed(text: str) -> Statistic:
    """Return the statistic of a text such as seconds:adapt; raises InputError with the nearest name."""
    name, _, argument = text.partition(":")
    every = [*_PLAIN, *(f"{one}:TASK" for one in _FREE), *(f"{one}:{part}" for one, parts in _ARGUMENTS.items() for part in parts)]
    known = (
        (name in _PLAIN and not argument) or (name in _FREE and bool(argument)) or argument in _ARGUMENTS.get(name, ())
    )
    if not known:
        raise InputError(f"unknown statistic {text!r}: {did_you_mean(text, every)}")
    return Statistic(name, argument)
