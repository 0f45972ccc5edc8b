"""The decoded cache: one file of uint8 squares per split, filled row by row, and an index that says which rows it holds.

Two files lie in a folder: `pixels` is sparse, row i at i * size * size * 3, and `index` says of every row whether it is there and
what its CRC-32 is. A row's pixels are written before its index entry, decoding is deterministic, and every entry checks itself
and the pixels, so that a process may be killed, or several may fill the same files at once, and nothing is believed that is not
whole.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.vision import decoding, modes
from fusionbench_lite.data.vision.encoded import Encoded, Opener, Rows
from fusionbench_lite.data.vision.index import ABSENT, BROKEN, DECODED, Index, write_at
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file, locked

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]
Alter = Callable[["Image", int], "Image"]
_PASSES = 3
_NAMED = 3


class Decoded:
    """The squares of one split, uint8 [N, size, size, 3], decoded when they are first wanted.

    `about` is everything that decides the content; it is written beside the files for people to read. `alter(image, row)`
    changes an image before it is cut.
    """

    def __init__(
        self, folder: Path, encoded: Encoded, about: Mapping[str, Any], size: int = decoding.SIZE, alter: Alter | None = None
    ) -> None:
        self.folder, self.encoded, self.about, self.size, self.alter = folder, encoded, dict(about), size, alter
        self.row_bytes = size * size * 3
        self.index = Index(folder / "index", len(encoded))
        self._verified = np.zeros(len(encoded), np.bool_)
        self._pixels: NDArray[np.uint8] | None = None
        self._lock = threading.RLock()
        self._refresh()

    def __len__(self) -> int:
        return len(self.encoded)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None, "_lock": None, "_verified": np.zeros(len(self), np.bool_)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def ensure(self, rows: Rows, report: Report | None = None, what: str = "decoding images") -> None:
        """Decode the rows that are not there yet. Rows that cannot be decoded are marked BROKEN.

        Raises InputError where a source file cannot be read or the cache cannot be written.
        """
        with self._lock:
            if self._missing(rows).size:
                self._refresh()
            for _ in range(_PASSES):  # more than one only where another process mends the index meanwhile
                missing = np.unique(self._missing(rows))
                if not missing.size:
                    return
                self._make_files()
                self._fill(missing, report, what)
            raise InputError(f"{self.folder} does not keep what is written to it: check the disk, or set another cache_dir")

    def _fill(self, missing: Rows, report: Report | None, what: str) -> None:
        done, groups = 0, self.encoded.groups(missing)
        # Processes that fill the same files start at different places, and so share the work.
        first = os.getpid() * 7919 % len(groups)
        with decoding.whole_images_only(), ThreadPoolExecutor(decoding.threads()) as pool:
            for group in (*groups[first:], *groups[:first]):
                self._refresh()
                todo = self._missing(group)
                done += len(group) - len(todo)
                for _ in self._decode(pool, todo):
                    done += 1
                    if report is not None:
                        report(what, done, len(missing))

    def refusal(self, broken: Rows, count: str) -> InputError:
        """Return the error that names images that cannot be decoded and why the first one cannot.

        `count` is the text into which their number goes.
        """
        names = ", ".join(self.encoded.name(row) for row in broken[:_NAMED].tolist())
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        return InputError(
            f"task {self.about.get('task')!r}: {count.format(len(broken))} images of {self.about.get('where')} cannot be decoded "
            f"({names}{more}{self._reason(broken)}): repair them, or set data.skip_corrupt={len(broken)} to leave them out"
        )

    def _reason(self, broken: Rows) -> str:
        """Return why the first image cannot be decoded, by trying again: the index keeps no reasons."""
        first = "the first one: " if len(broken) > 1 else ""
        with decoding.whole_images_only():
            try:
                for _, opener in self.encoded.read(broken[:1]):
                    modes.rgb(opener())
            except (decoding.CorruptImage, InputError) as error:
                return f"; {first}{error}"
        return ""

    def broken(self, rows: Rows | tuple[()] = ()) -> InputError:
        """Return the error that names every image that is known to be BROKEN, and `rows`, which were found to be elsewhere."""
        every = np.arange(len(self))
        rows_before = every[self.index.states(every) == BROKEN]
        return self.refusal(np.union1d(rows_before, np.array(rows, np.int64)), f"at least {{}} of {len(self)}")

    def read(self, rows: Rows) -> NDArray[np.uint8]:
        """Return rows, uint8 [n, size, size, 3]; each is checked against its CRC the first time this process reads it.

        A damaged row is decoded again. Raises InputError for rows that cannot be decoded.
        """
        with self._lock:
            self.ensure(rows)
            if bool((self.index.states(rows) == BROKEN).any()):
                raise self.broken()
            out = self._copy(rows)
            damaged = self._damaged(rows, out)
            if damaged:
                log.warning(
                    "%s: %d decoded images are damaged (first: %s): decoding them again",
                    self.folder, len(damaged), self.encoded.name(int(rows[damaged[0]])),
                )
                out[damaged] = self._again(np.unique(rows[damaged]), rows[damaged])
            self._verified[rows] = True
            return out

    def _damaged(self, rows: Rows, squares: NDArray[np.uint8]) -> list[int]:
        expected = self.index.checksums(rows)
        fresh = np.flatnonzero(~self._verified[rows]).tolist()
        return [place for place in fresh if _crc(squares[place], int(rows[place])) != expected[place]]

    def _again(self, damaged: Rows, wanted: Rows) -> NDArray[np.uint8]:
        try:
            with self.index.path.open("r+b") as index:
                self.index.forget(damaged, index.fileno())
        except OSError as error:
            raise self._cannot_write(error) from error
        self.ensure(damaged)
        out = self._copy(wanted)
        if self._damaged(wanted, out):
            raise InputError(f"{self.folder} does not keep what is written to it: check the disk, or set another cache_dir")
        return out

    def _copy(self, rows: Rows) -> NDArray[np.uint8]:
        if self._pixels is None:
            shape = (len(self), self.size, self.size, 3)
            try:
                self._pixels = np.memmap(self.folder / "pixels", np.uint8, "r", shape=shape)
            except (OSError, ValueError) as error:
                raise InputError(f"cannot read {self.folder / 'pixels'}: {error}; remove the folder, or set cache_dir") from error
        return np.array(self._pixels[rows])

    def _missing(self, rows: Rows) -> Rows:
        missing: Rows = rows[self.index.states(rows) == ABSENT]
        return missing

    def _decode(self, pool: ThreadPoolExecutor, rows: Rows) -> Iterator[int]:
        """Decode rows in threads, at most a few ahead of the oldest; yields each row that is done."""
        waiting: deque[Future[int]] = deque()
        if not rows.size:
            return
        with (self.folder / "pixels").open("r+b") as pixels, self.index.path.open("r+b") as index:
            try:
                for row, opener in self.encoded.read(rows):
                    waiting.append(pool.submit(self._store, row, opener, (pixels.fileno(), index.fileno())))
                    if len(waiting) > 4 * decoding.threads():
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # the files must not be closed while a thread still writes to them
                for future in waiting:
                    future.cancel()
                wait(waiting)

    def _store(self, row: int, opener: Opener, files: tuple[int, int]) -> int:
        """Decode one row and write it: the pixels, then the entry."""
        pixels, index = files
        try:
            image, traits = modes.with_traits(opener())
            square = decoding.square(image if self.alter is None else self.alter(image, row), self.size)
        except decoding.CorruptImage as error:
            log.warning("%s cannot be decoded: %s", self.encoded.name(row), error)
            square = None
        try:
            if square is None:
                self.index.keep(row, BROKEN, 0, index)
            else:
                content = np.ascontiguousarray(square)
                write_at(pixels, content.tobytes(), row * self.row_bytes)
                self.index.keep(row, DECODED, _crc(content, row), index, traits)
        except OSError as error:
            raise self._cannot_write(error) from error
        return row

    def _cannot_write(self, error: OSError) -> InputError:
        need = len(self) * self.row_bytes / 1e9
        return InputError(
            f"cannot write {self.folder}: {error.strerror or error}; the decoded images take up to {need:.1f} GB, what is decoded "
            "is kept: free some space, or set cache_dir"
        )

    def _refresh(self) -> None:
        """Learn what other processes have decoded; a damaged index is put right."""
        pixels = self.folder / "pixels"
        try:
            whole = self.index.refresh(pixels.stat().st_size // self.row_bytes if pixels.exists() else 0)
        except OSError as error:
            raise InputError(f"cannot read {self.folder}: {error.strerror or error}; set another cache_dir") from error
        if not whole:
            with self._writing():
                self._lengthen()
                self.index.create()

    def _make_files(self) -> None:
        """Create the files where they are not there; raises InputError where that cannot be."""
        files = (self.folder / "pixels", self.index.path)
        try:
            for file in files:
                with file.open("r+b"):
                    pass
        except FileNotFoundError:
            with self._writing(), atomic_file(self.folder / "about.json") as temporary:
                temporary.write_text(json.dumps(self.about, indent=1, default=str), encoding="utf-8")
                self._lengthen()
                if not self.index.path.exists():
                    self.index.create()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _writing(self) -> Any:
        return locked(self.folder.with_name(f"{self.folder.name}.lock"))

    def _lengthen(self) -> None:
        """Give the pixels their full length; the file is sparse until rows are written. It never becomes shorter."""
        self._pixels = None
        self._verified[:] = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "pixels").open("ab") as pixels:
                if pixels.seek(0, os.SEEK_END) < len(self) * self.row_bytes:
                    pixels.truncate(len(self) * self.row_bytes)
        except OSError as error:
            raise self._cannot_write(error) from error


def _crc(square: NDArray[np.uint8], row: int) -> int:
    """Return the CRC-32 of a row; its number goes in too, because whole rows that changed places are damage."""
    return zlib.crc32(square.data, row & 0xFFFFFFFF)
