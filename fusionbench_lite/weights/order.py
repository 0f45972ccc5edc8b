"""Exact order statistics over many tensors, without one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_DIGIT = 16
_BINS = 1 << _DIGIT


def kth_values(
    blocks: Callable[[], Iterable[Tensor]], k: int, zeros: int = 0, *, magnitude: bool = False
) -> Tensor:
    """Return, for each of the T rows, the k-th smallest (from 1) of its values and of `zeros` further zeros, [T].

    `blocks()` walks blocks [T, length], all float32 or all float64, and is called once per 16 bits of a value: rows
    are longer than memory. `magnitude` orders by |x|. The IEEE bit pattern of a non-negative float grows with the
    float, and that of a negative one falls, so the k-th value is found digit by digit with counters of 65,536 bins.
    Raises ValueError when there is no value.
    """
    searches: list[_Search] = []
    width, dtype = 0, None
    while dtype is None or width < _bits(dtype):
        for search in searches:
            search.counts.zero_()
        for block in blocks():
            if dtype is None:
                dtype, searches = block.dtype, [_Search(k) for _ in block]
            keys = _keys(block, magnitude)
            for search, row in zip(searches, keys, strict=True):
                search.count(row, width, signed=not magnitude)
        if dtype is None:
            if zeros < k:
                raise ValueError("there is no tensor to take an order statistic of")
            return torch.zeros(0)
        for search in searches:
            search.narrow(zeros if search.prefix == 0 else 0, width)
        width += _DIGIT
    keys = torch.tensor([search.prefix for search in searches], dtype=torch.int64).to(_integer(dtype))
    return _patterns(keys).view(dtype)


class Band:
    """In every row the entries whose rank by size, from 0 for the largest, is in [first, first + kept).

    Of equal sizes the earlier entry ranks first. A row may come in pieces: `mask` takes the next one of every row.
    """

    def __init__(self, first: int, kept: int, borders: list[Tensor], above: list[Tensor], same: list[Tensor]) -> None:
        self._first, self._end = first, first + kept
        self._borders, self._above, self._same = borders, above, same  # [k, 1] each, of the largest and the smallest rank
        self._seen = [torch.zeros_like(counts) for counts in above]

    @classmethod
    def of(cls, sizes: Tensor, first: int, kept: int, *, overwrite: bool = False) -> Band:
        """Return the band of sizes [k, n], none of them negative; `overwrite` lets them be reordered."""
        count = sizes.shape[1]
        end = min(first + kept, count)
        if end <= first:
            return cls(first, 0, [], [], [])
        ordered = _in_order(sizes, overwrite=overwrite)  # the smallest first
        borders = [ordered[:, count - 1 - rank : count - rank].clone() for rank in (first, end - 1)]  # [k, 1]
        if len(sizes) == 1:
            at_least = [count - torch.searchsorted(ordered, border) for border in borders]
            above = [count - torch.searchsorted(ordered, border, right=True) for border in borders]
        else:
            above = [(ordered > border).sum(1, keepdim=True) for border in borders]
            at_least = [(ordered >= border).sum(1, keepdim=True) for border in borders]
        return cls(first, end - first, borders, above, [all_ - more for all_, more in zip(at_least, above, strict=True)])

    def mask(self, sizes: Tensor) -> Tensor:
        """Return which of the next sizes [k, m] of every row are in the band."""
        if not self._borders:
            return torch.zeros_like(sizes, dtype=torch.bool)
        largest, smallest = self._borders
        inside = (sizes < largest) & (sizes > smallest)
        for number, border in enumerate(self._borders):
            equal = sizes == border
            above = self._above[number]
            if bool(((above >= self._first) & (above + self._same[number] <= self._end)).all()):
                inside |= equal  # all of them
                continue
            ranks = equal.cumsum(1, dtype=torch.int32) + (above + self._seen[number] - 1)
            self._seen[number] += equal.sum(1, keepdim=True)
            inside |= equal & (ranks >= self._first) & (ranks < self._end)
        return inside


def _in_order(values: Tensor, *, overwrite: bool) -> Tensor:
    """Return the values of every row, the smallest first."""
    if values.device.type != "cpu":
        return torch.sort(values, dim=1).values
    ordered = values if overwrite else values.clone()
    ordered.numpy().sort(axis=1)  # ten times faster than torch's, which orders places as well
    return ordered


class _Search:
    """The k-th smallest key of one row: the leading `prefix` found so far and the rank that is left within it."""

    def __init__(self, k: int) -> None:
        self.k, self.prefix = k, 0
        self.counts = torch.zeros(_BINS, dtype=torch.int64)
        self.pending: Tensor | None = None
        self.waiting = 0

    def count(self, keys: Tensor, width: int, *, signed: bool) -> None:
        """Count the next 16 bits of the keys whose first `width` bits are the prefix; the first bit is the sign."""
        remaining = 8 * keys.element_size() - width
        if width == 0:
            digits = keys >> (remaining - _DIGIT)
            if signed:
                digits += _BINS // 2
            first = 0 if signed else _BINS // 2
            self.counts[first:] += torch.bincount(digits, minlength=_BINS - first).cpu()
            return
        # Few keys match, and the counters are as long as a block: keys wait for each other, in memory that stays in one place.
        slots = _matching(keys, remaining, self.prefix) >> (remaining - _DIGIT)
        if self.pending is None:
            self.pending = torch.empty(_BINS, dtype=slots.dtype, device=slots.device)
        if self.waiting + len(slots) > _BINS:
            self._count_pending()
        if len(slots) > _BINS:
            self._add(slots)
        else:
            self.pending[self.waiting : self.waiting + len(slots)] = slots
            self.waiting += len(slots)

    def _count_pending(self) -> None:
        if self.pending is not None and self.waiting:
            self._add(self.pending[: self.waiting])
            self.waiting = 0

    def _add(self, digits: Tensor) -> None:
        self.counts += torch.bincount(digits & (_BINS - 1), minlength=_BINS).cpu()

    def narrow(self, zeros: int, width: int) -> None:
        """Take the digit that holds the k-th key; `zeros` keys of value 0 have not been counted."""
        self._count_pending()
        first = _BINS // 2 if width == 0 else 0
        self.counts[first] += zeros
        cumulative = self.counts.cumsum(0)
        digit = int(torch.searchsorted(cumulative, self.k))
        self.k -= int(cumulative[digit - 1]) if digit else 0
        self.prefix = (self.prefix << _DIGIT) + digit - first


def _matching(keys: Tensor, remaining: int, prefix: int) -> Tensor:
    """Return the keys with this prefix."""
    if keys.device.type != "cpu":
        return keys[(keys >> remaining) == prefix]
    listed = keys.numpy()  # whose selection is several times faster
    return torch.from_numpy(listed[(listed >> remaining) == prefix])


def _keys(block: Tensor, magnitude: bool) -> Tensor:
    """Return signed integers in the order of the floats; both zeros have key 0."""
    if magnitude:
        return block.abs().view(_integer(block.dtype))
    return _patterns((block + 0.0).view(_integer(block.dtype)))


def _patterns(bits: Tensor) -> Tensor:
    """Flip all bits but the sign of negative patterns; it is its own inverse."""
    sign = 8 * bits.element_size() - 1
    return bits ^ ((bits >> sign) & torch.iinfo(bits.dtype).max)


def _bits(dtype: torch.dtype) -> int:
    return 64 if dtype == torch.float64 else 32


def _integer(dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if dtype == torch.float64 else torch.int32
