"""Exact order statistics of magnitudes over many tensors, without one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_DIGIT = 16


def kth_magnitude(tensors: Callable[[], Iterable[Tensor]], k: int, zeros: int = 0) -> Tensor:
    """Return the k-th smallest (from 1) of all |x| and of `zeros` further zeros, as a 0-dim tensor.

    `tensors()` walks the tensors, all float32 or all float64, and is called once per 16 bits of a value. The IEEE bit
    pattern of a non-negative float grows with the float, so the k-th value is found digit by digit with counters of
    65,536 bins: memory is one tensor, whatever the size of the model.
    """
    prefix, width, dtype = 0, 0, None
    while dtype is None or width < _bits(dtype):
        counts = torch.zeros(1 << _DIGIT, dtype=torch.int64)
        for tensor in tensors():
            dtype = tensor.dtype
            counts += _histogram(tensor, prefix, width)
        if dtype is None:
            raise ValueError("there is no tensor to take an order statistic of")
        if prefix == 0:
            counts[0] += zeros
        cumulative = counts.cumsum(0)
        digit = int(torch.searchsorted(cumulative, k))
        k -= int(cumulative[digit - 1]) if digit else 0
        prefix, width = (prefix << _DIGIT) | digit, width + _DIGIT
    return torch.tensor(prefix, dtype=_integer(dtype)).view(dtype)


def _histogram(tensor: Tensor, prefix: int, width: int) -> Tensor:
    """Count the next 16 bits of the magnitudes whose first `width` bits are `prefix`."""
    bits = tensor.abs().flatten().view(_integer(tensor.dtype))
    remaining = _bits(tensor.dtype) - width
    if width:
        bits = bits[(bits >> remaining) == prefix]
    digits = (bits >> (remaining - _DIGIT)) & ((1 << _DIGIT) - 1)
    return torch.bincount(digits, minlength=1 << _DIGIT).cpu()


def _bits(dtype: torch.dtype) -> int:
    return 64 if dtype == torch.float64 else 32


def _integer(dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if dtype == torch.float64 else torch.int32
