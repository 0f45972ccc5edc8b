"""The index of the decoded cache: 8 bytes per row, which say whether the row is there and what its CRC-32 is."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.vision.encoded import Rows
from fusionbench_lite.paths import atomic_file

log = logging.getLogger(__name__)

ABSENT, DECODED, BROKEN = range(3)
_ENTRY = np.dtype("<u8")
_KIND_BITS, _TRAIT_BITS = 2, 6
_KIND = (1 << _KIND_BITS) - 1


class Index:
    """Entries of `count` rows: 16 bits state, 16 bits check of the entry itself, 32 bits CRC; 0 where nothing is known.

    The state is ABSENT, DECODED or BROKEN in its lowest two bits and the image's traits (modes.py) above them.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self._entries = np.zeros(count, _ENTRY)

    def states(self, rows: Rows) -> NDArray[np.uint64]:
        """Return ABSENT, DECODED or BROKEN for rows."""
        return (self._entries[rows] >> np.uint64(48)) & np.uint64(_KIND)

    def traits(self, rows: Rows) -> NDArray[np.int64]:
        """Return the traits of decoded rows."""
        return (self._entries[rows] >> np.uint64(48 + _KIND_BITS)).astype(np.int64)

    def checksums(self, rows: Rows) -> NDArray[np.uint32]:
        """Return the CRC-32 of decoded rows."""
        return (self._entries[rows] & np.uint64(0xFFFFFFFF)).astype(np.uint32)

    def create(self) -> None:
        """Write the file as far as it is known here; raises InputError where that cannot be."""
        with atomic_file(self.path) as temporary:
            temporary.write_bytes(self._entries.tobytes())

    def refresh(self, present: int) -> bool:
        """Read the file: what is not known here, another process may have done. `present` rows of pixels are there.

        Returns False where the file is damaged; its damaged entries count as absent then. Raises OSError.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            self._entries[present:] = 0
            return True
        rows = np.arange(self.count)
        stored = np.zeros(self.count, _ENTRY)
        whole = min(len(content) // _ENTRY.itemsize, self.count)
        stored[:whole] = np.frombuffer(content, _ENTRY, whole)
        packed = _packed(rows, stored >> np.uint64(48), stored & np.uint64(0xFFFFFFFF))
        good = (stored == 0) | ((stored == packed) & (rows < present))
        good &= (stored >> np.uint64(48)) & np.uint64(_KIND) <= BROKEN
        good &= (stored >> np.uint64(48 + _KIND_BITS + _TRAIT_BITS)) == 0
        stored[~good] = 0
        remembered = np.where(rows < present, self._entries, np.uint64(0))
        self._entries = np.where((stored == 0) & good, remembered, stored)
        whole_file = bool(good.all()) and whole == self.count
        if not whole_file:
            lost = int((~good).sum()) + self.count - whole
            log.warning("%s is damaged: rebuilding it; up to %d images are decoded again", self.path, lost)
        return whole_file

    def forget(self, rows: Rows, file: int) -> None:
        """Mark rows as absent; raises OSError."""
        self._entries[rows] = 0
        for row in rows.tolist():
            _put(file, bytes(_ENTRY.itemsize), row)

    def keep(self, row: int, state: int, checksum: int, file: int, traits: int = 0) -> None:
        """Enter a row; raises OSError. Rows may be entered by several threads at once."""
        state |= traits << _KIND_BITS
        entry = _packed(np.array([row]), np.array([state], np.uint64), np.array([checksum], np.uint64))
        _put(file, entry.tobytes(), row)
        self._entries[row] = entry[0]


def write_at(file: int, content: bytes, offset: int) -> None:
    """Write all of `content` at an offset of an open file; raises OSError, also where only a part fitted."""
    done = 0
    while done < len(content):
        written = os.pwrite(file, content[done:], offset + done)
        if not written:
            raise OSError("nothing more can be written")
        done += written


def _put(file: int, entry: bytes, row: int) -> None:
    write_at(file, entry, row * _ENTRY.itemsize)


def _packed(rows: Rows, states: NDArray[np.uint64], checksums: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = checksums * np.uint64(0x9E3779B1) + rows.astype(np.uint64) * np.uint64(0x85EBCA6B) + states * np.uint64(0xC2B2AE35)
    check = (mixed >> np.uint64(24)) & np.uint64(0xFFFF)
    packed: NDArray[np.uint64] = (states << np.uint64(48) | check << np.uint64(32) | checksums).astype(_ENTRY)
    return packed
