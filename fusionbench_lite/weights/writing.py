"""Tensors are cast, checked and written by a thread of their own while the next ones are read and computed."""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.limits import Limits
from fusionbench_lite.weights.shards import Layout

if TYPE_CHECKING:
    from torch import Tensor

WAITING = 64 << 20
"""Bytes that may wait to be written while the next tensor is computed; a larger tensor is waited for."""
PIECE = 1 << 18
"""Elements that are cast, checked and written at a time: what fits a core's cache."""


class _Job(NamedTuple):
    names: tuple[str, ...]
    tensor: Tensor
    finite: bool
    kept: bool


class Writer:
    """Writes tensors to their places in the files of `layout`, which are in `folder`.

    Values are cast to the dtype of the layout and refused beyond its range, block by block; `record(name, crc)` is called when
    a tensor is in its file. What goes wrong in the thread is raised by the next `put`, or when the block ends: MergeError for
    values, OSError for the file system. A block that ends with an error abandons what waits.
    """

    def __init__(self, folder: Path, layout: Layout, limits: Limits, record: Callable[[str, int], None]) -> None:
        self._folder, self._layout, self._limits, self._record = folder, layout, limits, record
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._waiting, self._ended = 0, False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fusionbench_lite writer", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._ended = True
            if kind is not None:
                self._jobs.clear()
            self._changed.notify_all()
        self._thread.join()
        if kind is None:
            self._raise()

    def put(self, names: tuple[str, ...], tensor: Tensor, *, finite: bool = False, kept: bool = False) -> None:
        """Have a tensor written under these names; it must not change any more. `finite`: its values are known to be;
        `kept`: it is the base's own, in its dtype.

        Returns when at most `WAITING` bytes wait.
        """
        with self._changed:
            self._raise()
            self._jobs.append(_Job(names, tensor, finite, kept))
            self._waiting += tensor.nbytes
            del tensor
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting <= WAITING or self._error is not None)
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                size = job.tensor.nbytes
                self._write(job)
                del job
                with self._changed:
                    self._waiting -= size
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._jobs.clear()
                self._changed.notify_all()

    def _next(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._ended)
            return self._jobs.popleft() if self._jobs else None

    def _write(self, job: _Job) -> None:
        places = [self._layout.places[name] for name in job.names]
        crc = 0
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context((self._folder / place.file).open("r+b", buffering=0)) for place in places]
            for file, place in zip(files, places, strict=True):
                file.seek(place.start)
            for data in self._pieces(job):
                crc = zlib.crc32(data, crc)
                for file in files:
                    left = data
                    while left:  # a file without a buffer may take less
                        left = left[file.write(left) :]
        for name in job.names:
            self._record(name, crc)

    def _pieces(self, job: _Job) -> Iterator[memoryview]:
        name, dtype = job.names[0], self._layout.specs[job.names[0]].dtype
        flat = job.tensor.detach().reshape(-1)
        for start in range(0, len(flat), PIECE):
            piece = flat[start : start + PIECE]
            stored = piece if job.kept else self._limits.cast(name, piece, dtype, finite=job.finite, whole=flat)
            yield stored.cpu().contiguous().view(torch.uint8).numpy().data
