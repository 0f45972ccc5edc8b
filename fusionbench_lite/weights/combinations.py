"""Means of experts and weighted sums of task vectors in one pass over them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.parallel import each

if TYPE_CHECKING:
    from torch import Tensor

SPAN, PIECE = 1 << 17, 1 << 17
"""Elements of a tensor that are worth a thread of their own, and those that one sums up at a time."""


def combined(base: Tensor, flat: list[Tensor], weights: Sequence[float], dtype: torch.dtype) -> tuple[Tensor, bool]:
    """Return θ0 + Σ_t w_t τ_t [n] in `dtype` for θ0 [n] and θ_1 … θ_T, `flat`, and whether it is finite."""
    result = torch.empty(len(base), dtype=dtype, device=base.device)
    return result, _in_spans(result, lambda span: _combine(base, flat, weights, result, span))


def averaged(flat: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, bool]:
    """Return (1/T) Σ_t θ_t [n] in `dtype`, added in task order, and whether the sum is finite."""
    result = torch.empty(len(flat[0]), dtype=dtype, device=flat[0].device)
    return result, _in_spans(result, lambda span: _average(flat, result, span))


def _in_spans(result: Tensor, work: Callable[[slice], bool]) -> bool:
    """Do the work span by span; returns whether it was true of all.

    There are as many spans as threads, all of one length: a short one more would cost the time of a whole one.
    """
    span = max(SPAN, -(-len(result) // torch.get_num_threads())) if result.device.type == "cpu" else len(result)
    return all(each(lambda start: work(slice(start, start + span)), range(0, len(result), span)))


def _average(flat: list[Tensor], result: Tensor, span: slice) -> bool:
    """Write a span of the mean to `result`; return whether the sum is finite."""
    piece = PIECE if result.device.type == "cpu" else span.stop - span.start
    finite = True
    for start in range(span.start, min(span.stop, len(result)), piece):
        part = slice(start, min(start + piece, span.stop, len(result)))
        total = result[part].copy_(flat[0][part])
        for weights in flat[1:]:
            total += weights[part].to(total.dtype)
        finite = finite and math.isfinite(total.sum().item())
        total /= len(flat)
    return finite


def _combine(base: Tensor, flat: list[Tensor], weights: Sequence[float], result: Tensor, span: slice) -> bool:
    """Write a span of θ0 + Σ_t w_t τ_t to `result`; return whether it is finite.

    Neighbours of equal weight are added in groups of up to eight before as many times θ0 is taken off: fewer operations,
    and no rounding where they equal θ0. What is not finite in an input is not finite in the sum, whatever its weight.
    """
    piece = PIECE if result.device.type == "cpu" else span.stop - span.start
    buffer = torch.empty(min(piece, len(result)), dtype=result.dtype, device=result.device)
    groups = [
        (weight, list(members)) for weight, run in itertools.groupby(zip(weights, flat, strict=True), key=lambda pair: pair[0])
        for members in _groups(tensor for _, tensor in run)
    ]
    finite = True
    for start in range(span.start, min(span.stop, len(result)), piece):
        part = slice(start, min(start + piece, span.stop, len(result)))
        origin, total, difference = base[part].to(result.dtype), result[part], buffer[: min(part.stop, len(result)) - start]
        sum_so_far = origin
        for weight, members in groups:
            out = total if sum_so_far is origin else difference
            first = members[0][part].to(result.dtype)
            for other in members[1:]:
                first = torch.add(first, other[part].to(result.dtype), out=out)
            torch.sub(first, origin, alpha=len(members), out=out)
            sum_so_far = torch.add(sum_so_far, out, alpha=weight, out=total)
        finite = finite and math.isfinite(total.sum().item())
    return finite


def _groups(tensors: Iterator[Tensor]) -> Iterator[list[Tensor]]:
    """Yield groups of 8, then of 4, 2 and 1: powers of two, so that multiples of θ0 are exact."""
    listed = list(tensors)
    for size in (8, 4, 2, 1):
        while len(listed) >= size:
            yield listed[:size]
            listed = listed[size:]
