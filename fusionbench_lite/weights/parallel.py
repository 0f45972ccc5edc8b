"""Independent pieces of work on the cores of a CPU, one thread of arithmetic each.

Elementwise operations and decompositions of one matrix gain little from more threads; two tensors or two matrices at
once gain all of it. The bits of a piece do not depend on the number of threads either.
"""

from __future__ import annotations

import contextvars
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fusionbench_lite.lazy import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return the results of `function` in the order of the items, on as many threads as torch uses.

    `function` must not write what another call reads. An exception in one of them is raised here.
    """
    listed = list(items)
    threads = min(torch.get_num_threads(), len(listed))
    if threads < 2:
        return [function(item) for item in listed]
    context = contextvars.copy_context()
    return list(_workers(torch.get_num_threads()).map(lambda item: context.copy().run(function, item), listed))


def in_turns(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield what `each` returns, with no more results in memory than are computed at once."""
    at_once = torch.get_num_threads()
    for start in range(0, len(items), at_once):
        yield from each(function, items[start : start + at_once])


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "fusionbench_lite")
    started = threading.Barrier(threads)

    def start(_: int) -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # now the thread has read the limit, and keeps it
        started.wait()

    list(pool.map(start, range(threads)))
    # A worker's limit also becomes the default of threads to come: put back what the caller had.
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.cache_clear)  # a forked process has the pool, but none of its threads
