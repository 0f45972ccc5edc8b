"""Token ids of many texts, each as long as it is; padded when rows of them are read."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = ("input_ids", "attention_mask")
Row = NDArray[np.int32]


class Tokens(Mapping[str, NDArray[Any]]):
    """Token ids of N texts: `tokens[rows]` are the arrays of some rows, padded on the right to the longest of them.

    As `data.Columns`, a name instead of rows gives an array of all. One array holds all ids, since a list of a million small
    arrays would take ten times their memory.
    """

    def __init__(self, rows: Sequence[Row], pad: int) -> None:
        self.pad = pad
        self._rows: Sequence[Row] = rows
        self._open: Callable[[], Tokens] | None = None
        self._stands_for: Callable[[], str] | None = None

    @classmethod
    def deferred(cls, open_: Callable[[], Tokens], pad: int, stands_for: Callable[[], str]) -> Tokens:
        """Return the tokens that `open_` gives when they are first read; `stands_for` is their fingerprint, known before that."""
        tokens = cls((), pad)
        tokens._open, tokens._stands_for = open_, stands_for
        return tokens

    @functools.cached_property
    def _stored(self) -> tuple[Row, NDArray[np.int64]]:
        """All ids in one array, and where each row begins in it, [N + 1]."""
        if self._open is not None:
            return self._open()._stored
        rows, self._rows = self._rows, ()
        ends = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
        return np.concatenate([*rows, np.empty(0, np.int32)]).astype(np.int32, copy=False), ends

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The numbers of tokens of the texts, int64 [N]."""
        return np.diff(self._stored[1])

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of padding, lengths and ids, or what stands for them where they are read later."""
        if self._stands_for is not None:
            return self._stands_for()
        ids, ends = self._stored
        digest = hashlib.sha256(repr(("tokens", self.pad, len(self))).encode())
        digest.update(ends.astype("<i8").data)
        digest.update(ids.astype("<i4").data)
        return digest.hexdigest()

    @property
    def shape(self) -> tuple[int, int]:
        """The number of texts and the length of the longest."""
        return len(self), int(self.lengths.max(initial=0))

    def __len__(self) -> int:
        return len(self._stored[1]) - 1

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __getitem__(self, rows: Any) -> Any:
        """Return {input_ids, attention_mask}, int64 [B, L] each, of a slice, a mask or an array of rows."""
        if isinstance(rows, str):
            return self[:][rows]
        ids, ends = self._stored
        chosen = np.atleast_1d(np.arange(len(self))[rows])
        lengths = ends[chosen + 1] - ends[chosen]
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        places = ends[chosen][:, None] + np.arange(mask.shape[1])
        padded = np.full(mask.shape, self.pad, np.int64)
        padded[mask] = ids[places[mask]]
        return {"input_ids": padded, "attention_mask": mask.astype(np.int64)}

    def rows(self) -> list[Row]:
        """Return the ids of every text, without padding."""
        ids, ends = self._stored
        return [ids[start:end] for start, end in itertools.pairwise(ends.tolist())]


class Labels:
    """Labels [N] that are read when they are first wanted, as the texts they belong to."""

    ndim = 1

    def __init__(self, read: Callable[[], NDArray[Any]], dtype: type[np.generic]) -> None:
        self._read, self.dtype = read, np.dtype(dtype)

    @functools.cached_property
    def _array(self) -> NDArray[Any]:
        return self._read()

    @property
    def shape(self) -> tuple[int]:
        """[N]."""
        return (len(self),)

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows: Any) -> Any:
        return self._array[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._array, dtype, copy=True)
