"""Choices of a drawing, from one random stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_AT_ONCE = 4096  # single numbers of a numpy generator cost as much as hundreds


class Choices:
    """Choices from a generator; each takes numbers from it, so that their order belongs to what is drawn."""

    def __init__(self, stream: np.random.Generator) -> None:
        self._numbers = self._drawn(stream)

    def one(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[int(next(self._numbers) * len(options))]

    def other(self, options: Sequence[T], than: T) -> T:
        """Return an option that is not `than`."""
        return self.one([option for option in options if option != than])

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """Return `count` different options, in random order."""
        left = list(options)
        return [left.pop(int(next(self._numbers) * len(left))) for _ in range(count)]

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return next(self._numbers) < probability

    @staticmethod
    def _drawn(stream: np.random.Generator) -> Iterator[float]:
        while True:
            yield from stream.random(_AT_ONCE).tolist()
