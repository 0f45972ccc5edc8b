"""Images and labels as arrays that are decoded, or even fetched, when they are first read."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.vision.cache import Decoded, Report
from fusionbench_lite.data.vision.encoded import Rows

if TYPE_CHECKING:
    from fusionbench_lite.data.arrays import Originals


class Opened:
    """What a split is once it is opened: its decoded cache, the rows of it that count, and their labels."""

    def __init__(self, decoded: Decoded, rows: Rows, labels: NDArray[np.int64]) -> None:
        self.decoded, self.rows, self.labels = decoded, rows, labels


class Deferred:
    """A split that is opened when it is first read; `count` returns its number of images, or None where it has to be opened."""

    def __init__(self, count: Callable[[], int | None], size: int, open_: Callable[[], Opened]) -> None:
        self._count, self.size, self._open = count, size, open_
        self._opened: Opened | None = None
        self._lock = threading.Lock()

    @property
    def opened(self) -> Opened:
        """The split, opened once whatever thread asks first; raises InputError where it cannot be had."""
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    @functools.cached_property
    def _length(self) -> int:
        count = self._count()
        return len(self.opened.rows) if count is None else count

    def __len__(self) -> int:
        return self._length


class Images:
    """Images of a split, uint8 [N, size, size, 3]: indexing with a row, a slice, a mask or an array of rows decodes those.

    `fingerprint` stands for the content in hashes, `originals` gives the images as they were before they became squares, None
    where they are not to be had.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, deferred: Deferred, fingerprint: Callable[[], str], originals: Originals | None = None) -> None:
        self._deferred, self._fingerprint, self.originals = deferred, fingerprint, originals

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the content, or of the files that decide it."""
        return self._fingerprint()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, size, size, 3]."""
        return (len(self), self._deferred.size, self._deferred.size, 3)

    def __len__(self) -> int:
        return len(self._deferred)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        chosen = self._deferred.opened.rows[rows]
        if chosen.ndim == 0:
            squares = self._deferred.opened.decoded.read(chosen.reshape(1))
            return np.asarray(squares[0])
        squares = self._deferred.opened.decoded.read(chosen.reshape(-1))
        return squares.reshape(*chosen.shape, *squares.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def decode_ahead(self, rows: Any = slice(None), report: Report | None = None) -> None:
        """Decode rows into the cache ahead of reading them, with all threads and every storage unit read once."""
        opened = self._deferred.opened
        opened.decoded.ensure(np.atleast_1d(opened.rows[rows]).reshape(-1), report)


class Labels:
    """Labels of a split, int64 [N], which are read when they are first wanted."""

    dtype = np.dtype(np.int64)
    ndim = 1

    def __init__(self, deferred: Deferred) -> None:
        self._deferred = deferred

    @property
    def shape(self) -> tuple[int]:
        """[N]."""
        return (len(self),)

    def __len__(self) -> int:
        return len(self._deferred)

    def __getitem__(self, rows: Any) -> Any:
        return self._deferred.opened.labels[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._deferred.opened.labels, dtype, copy=True)
