"""How long decompositions take, on whichever threads they run."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Stopwatch:
    """`seconds` in which at least one thread was at work."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._running, self._since, self._lock = 0, 0.0, threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._running:
                self._since = time.perf_counter()
            self._running += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._running -= 1
            if not self._running:
                self.seconds += time.perf_counter() - self._since


_current: contextvars.ContextVar[Stopwatch | None] = contextvars.ContextVar("stopwatch", default=None)


@contextlib.contextmanager
def timing() -> Iterator[Stopwatch]:
    """Measure the decompositions of the block."""
    watch = Stopwatch()
    token = _current.set(watch)
    try:
        yield watch
    finally:
        _current.reset(token)


def timed(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return the function as one that a stopwatch of `timing` measures, those that it calls within."""

    @functools.wraps(function)
    def measured(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        with _current.get() or contextlib.nullcontext():
            return function(*arguments, **named)

    return measured
