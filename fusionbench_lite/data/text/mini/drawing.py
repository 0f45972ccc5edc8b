"""Choices of a drawing, from one random stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Choices:
    """Choices from a generator; each takes numbers from it, so that their order belongs to what is drawn."""

    def __init__(self, stream: np.random.Generator) -> None:
        self._stream = stream

    def one(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[int(self._stream.integers(len(options)))]

    def other(self, options: Sequence[T], than: T) -> T:
        """Return an option that is not `than`."""
        return self.one([option for option in options if option != than])

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """Return `count` different options, in random order."""
        return [options[int(number)] for number in self._stream.permutation(len(options))[:count]]

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return bool(self._stream.random() < probability)
