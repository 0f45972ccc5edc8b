"""Training images as they are before the resize and the cut of evaluation, one at a time, for trainings that crop them."""

from __future__ import annotations

import logging
import os
import threading
import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.vision import decoding
from fusionbench_lite.data.vision.cache import Decoded, Report
from fusionbench_lite.data.vision.encoded import Encoded, Rows
from fusionbench_lite.data.vision.images import Deferred
from fusionbench_lite.data.vision.packed import Parquet
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file, locked

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

_ENTRY = np.dtype("<u8")
_FIELDS = 3
_CRC = 0xFFFFFFFF


class SplitOriginals:
    """The originals of a split's images, `data.arrays.Originals`: the same rows, so that one that was left out has none.

    Files, tar files and arrays are read where they are. Parquet files give their images a row group at a time, which a step's
    few random rows would have read nearly whole: their images are copied, as they are encoded, into the split's cache.
    """

    def __init__(self, deferred: Deferred, report: Report | None = None) -> None:
        self._deferred, self._report = deferred, report
        self._singles: Encoded | Copied | None = None
        self._lock = threading.Lock()

    def copy_ahead(self) -> None:
        """Copy what has to be copied; raises InputError where files cannot be read or written."""
        self._source()

    def __call__(self, row: int) -> Image:
        """Return the image of a row, RGB, at its own resolution; raises CorruptImage or InputError."""
        number, source = int(self._deferred.opened.rows[row]), self._source()
        try:
            if isinstance(source, Copied):
                return decoding.rgb(decoding.opened(source.read(number)))
            _, opener = next(source.read(np.array([number])))
            return decoding.rgb(opener())
        except decoding.CorruptImage as error:
            log.warning("%s cannot be decoded: %s", self._deferred.opened.decoded.encoded.name(number), error)
            raise

    def refusal(self, rows: Rows) -> InputError:
        """Return the error that names rows that cannot be decoded, beside those that are known already."""
        opened = self._deferred.opened
        return opened.decoded.broken(opened.rows[rows])

    def _source(self) -> Encoded | Copied:
        with self._lock:
            if self._singles is None:
                decoded = self._deferred.opened.decoded
                images = decoded.encoded
                self._singles = Copied(decoded, images, self._report) if isinstance(images, Parquet) else images
            return self._singles


class Copied:
    """The encoded images of parquet files, one after the other in a file of the split's cache, so that each is one read.

    `encoded` holds the bytes. `encoded.index`, uint64 [N, 3], has offset, size and CRC-32 of every image; it is written after
    the bytes, so that a copy without it, or of another length than it says, is not believed.
    """

    def __init__(self, decoded: Decoded, images: Parquet, report: Report | None = None) -> None:
        self.images, self.path, self.index = images, decoded.folder / "encoded", decoded.folder / "encoded.index"
        with locked(decoded.folder.with_name(f"{decoded.folder.name}-encoded.lock")):
            entries = self._read_index()
            if entries is None:
                self._copy(report, f"copying {decoded.about.get('task')}")
                entries = self._read_index()
        if entries is None:
            raise InputError(f"{decoded.folder} does not keep what is written to it: check the disk, or set another cache_dir")
        self._entries = entries

    def read(self, row: int) -> bytes | None:
        """Return the bytes of a row's image; what is damaged in the copy is read from its source. Raises InputError."""
        offset, size, expected = self._entries[row].tolist()
        try:
            with self.path.open("rb") as file:
                content: bytes | None = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}; remove the folder, or set cache_dir") from error
        if _crc(content, row) != expected:
            log.warning("%s is damaged at %s: reading that image from its source", self.path, self.images.name(row))
            _, content = next(self.images.contents(np.array([row])))
        return content

    def _copy(self, report: Report | None, what: str) -> None:
        count, offset = len(self.images), 0
        entries = np.zeros((count, _FIELDS), _ENTRY)
        with atomic_file(self.path) as temporary, temporary.open("wb") as file:
            for row, content in self.images.contents(np.arange(count)):
                size = file.write(content or b"")
                entries[row] = offset, size, _crc(content, row)
                offset += size
                if report is not None:
                    report(what, row + 1, count)
        with atomic_file(self.index) as temporary:
            temporary.write_bytes(entries.tobytes())

    def _read_index(self) -> NDArray[np.uint64] | None:
        """Return the index of a whole copy, None without one."""
        try:
            entries = np.frombuffer(self.index.read_bytes(), _ENTRY).reshape(len(self.images), _FIELDS)
            length = self.path.stat().st_size
        except (OSError, ValueError):
            return None
        ends = np.cumsum(entries[:, 1])
        whole = bool((entries[:, 0] == ends - entries[:, 1]).all()) and int(ends[-1]) == length
        return entries if whole else None


def _crc(content: bytes | None, row: int) -> int:
    """Return the CRC-32 of a row's bytes; its number goes in too, because images that changed places are damage."""
    return zlib.crc32(content or b"", row & _CRC)
