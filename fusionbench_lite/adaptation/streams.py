"""Which unlabelled examples a task contributes at each step.

A stream is a function of (seed, task, step): nothing is drawn in sequence, so the position of a stream is the number of
the step, and a resumed run, or a run on other devices, reads the same examples.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fusionbench_lite.base.randomness import generator
from fusionbench_lite.errors import InputError

KINDS = ("redraw", "epoch", "cycle", "sequential")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """Batches of example indices of one task (docs/decisions.md, D2).

    `redraw`: every step shuffles all examples anew and takes its batches from the front (AdaMerging's code).
    `epoch`: shuffled passes, a new order each pass, the partial last batch kept (AdaRank, FusionBench).
    `cycle`: one shuffled pass, replayed in the same order. `sequential`: passes in the stored order.
    `size` examples are there; a step takes `batches` batches of `batch_size` as one array.
    """

    kind: str
    size: int
    batch_size: int
    batches: int
    seed: int
    task: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"stream must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in ("size", "batch_size", "batches"):
            if getattr(self, name) < 1:
                raise InputError(f"task {self.task!r}: {name} must be at least 1, got {getattr(self, name)}")

    def indices(self, step: int) -> np.ndarray:
        """Return the example indices of step `step` (from 0), int64 [at most batches · batch_size]."""
        if self.kind == "redraw":
            order = generator(self.seed, self.task, "redraw", step).permutation(self.size)
            return order[: self.batches * self.batch_size]
        first = step * self.batches
        return np.concatenate([self._batch(number) for number in range(first, first + self.batches)])

    def count(self, step: int) -> int:
        """Return how many indices a step has; nothing is drawn."""
        if self.kind == "redraw":
            return min(self.size, self.batches * self.batch_size)
        per_pass, first = -(-self.size // self.batch_size), step * self.batches
        places = (number % per_pass for number in range(first, first + self.batches))
        return sum(min(self.batch_size, self.size - place * self.batch_size) for place in places)

    def _batch(self, number: int) -> np.ndarray:
        per_pass = -(-self.size // self.batch_size)
        turn, position = divmod(number, per_pass)
        start = position * self.batch_size
        return self._order(turn)[start : start + self.batch_size]

    def _order(self, turn: int) -> np.ndarray:
        if self.kind == "sequential":
            return np.arange(self.size)
        return generator(self.seed, self.task, self.kind, turn if self.kind == "epoch" else 0).permutation(self.size)


def subset(size: int, wanted: int, *key: object) -> np.ndarray:
    """Return `wanted` of `size` rows, drawn uniformly by the key, in order; a larger subset contains a smaller one."""
    return np.sort(generator(*key).permutation(size)[:wanted])
