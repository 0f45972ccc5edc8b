"""Encoded images of one split: where each is, and how to open it. Nothing is decoded here before it is asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.vision import decoding
from fusionbench_lite.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Rows = NDArray[np.int64]
Opener = Callable[[], "Image"]
_TOGETHER = 256
"""Rows that are handed out together where the storage has no larger unit."""


class Encoded(Protocol):
    """Images by row."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Return the name of a row that a user finds it by."""
        ...

    def groups(self, rows: Rows) -> list[Rows]:
        """Return the rows in groups that are cheap to read together."""
        ...

    def read(self, rows: Rows) -> Iterator[tuple[int, Opener]]:
        """Yield every row with a function that opens its image; raises InputError where a file cannot be read."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a task: images, labels int64 [N], and what they are.

    `classes` are the source's own class names in the order of the labels, None where it has none or they gave the order.
    `identity` changes whenever the files may have changed, `fingerprint` only when their content does. `files` are pairs of
    file name and SHA-256, as far as known.
    `exact`: the source is a published one, whose sizes are checked.
    """

    where: str
    encoded: Encoded
    labels: NDArray[np.int64]
    classes: tuple[str, ...] | None
    identity: str
    fingerprint: str
    files: tuple[tuple[str, str], ...] = ()
    exact: bool = True
    notes: tuple[str, ...] = ()


class Files:
    """Images in files of their own."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        """Return the path."""
        return str(self.paths[row])

    def groups(self, rows: Rows) -> list[Rows]:
        """Return groups of neighbours."""
        return in_order(rows)

    def read(self, rows: Rows) -> Iterator[tuple[int, Opener]]:
        """Yield the rows; files are read when they are opened, so that threads read them."""
        for row in rows.tolist():
            yield row, lambda path=self.paths[row]: decoding.opened(file_bytes(path))  # type: ignore[misc]


class Arrays:
    """Images that are in memory or that a library decodes: `image(row)` returns a PIL image or an array [H, W(, 3)]."""

    def __init__(self, count: int, image: Callable[[int], Image | NDArray[np.uint8]], where: str) -> None:
        self._count, self._image, self._where = count, image, where

    def __len__(self) -> int:
        return self._count

    def name(self, row: int) -> str:
        """Return the source with the row."""
        return f"{self._where} row {row}"

    def groups(self, rows: Rows) -> list[Rows]:
        """Return groups of neighbours."""
        return in_order(rows)

    def read(self, rows: Rows) -> Iterator[tuple[int, Opener]]:
        """Yield the rows."""
        for row in rows.tolist():
            yield row, lambda row=row: decoding.as_image(self._image(row))  # type: ignore[misc]


def in_order(rows: Rows) -> list[Rows]:
    """Return the rows cut into groups of neighbours."""
    return np.split(rows, range(_TOGETHER, len(rows), _TOGETHER)) if len(rows) else []


def file_bytes(path: Path) -> bytes:
    """Return the content of a file; raises InputError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; put the file back or choose another source") from error


def identities(root: Path, paths: Iterable[Path], labels: NDArray[np.int64], *rule: object) -> tuple[str, str]:
    """Return identity and fingerprint of files below `root`: names, sizes and labels, for the identity also their dates."""
    identity, fingerprint = (hashlib.sha256(repr(rule).encode()) for _ in range(2))
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}; put it back or choose another source") from error
        if not stat.S_ISREG(status.st_mode):  # reading a pipe waits for ever
            raise InputError(f"{path} is no regular file: remove it, or put the image there")
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
        identity.update(repr((str(root), name, status.st_size, status.st_mtime_ns)).encode())
        fingerprint.update(repr((name, status.st_size)).encode())
    for digest in (identity, fingerprint):
        digest.update(labels.tobytes())
    return identity.hexdigest(), fingerprint.hexdigest()


def checked_labels(labels: NDArray[np.generic], classes: int, where: str) -> NDArray[np.int64]:
    """Return labels as int64; raises InputError where they are not integers or leave the range of the classes."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}: labels are {labels.dtype} of shape {list(labels.shape)}, not one integer per image")
    if not len(labels):
        raise InputError(f"{where}: there is no image: put at least one there")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"{where}: labels run from {low} to {high}, but {classes} classes are numbered 0 to {classes - 1}: "
            "take the files of this task"
        )
    return labels.astype(np.int64)
