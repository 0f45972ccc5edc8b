"""How far two merged models in bfloat16 are from each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from fusionbench_lite.weights.readers import SafetensorsWeights

SIGNIFICANT = 2.0**-8
"""Values next to each other differ by at least this part of their size in bfloat16."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """`equal`: the part of the values whose bits are the same; `neighbours`: that of values which differ by one place or not at
    all; `largest`: of |x - y| / max |y| over the tensors, the largest."""

    equal: float
    neighbours: float
    largest: float


def compare(given: tuple[Path, Path]) -> Difference:
    """Compare two folders tensor by tensor. Raises ValueError where names or shapes are not the same."""
    ours, other = (SafetensorsWeights(path) for path in given)
    if set(ours) != set(other):
        raise ValueError(f"{given[1]} has other tensors: {sorted(set(ours) ^ set(other))[:4]}")
    count, equal, near, largest = 0, 0, 0, 0.0
    for name in ours:
        a, b = ours[name], other[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(f"{name!r} is {a.dtype} {tuple(a.shape)} here and {b.dtype} {tuple(b.shape)} in {given[1]}")
        places = (_ordered(a) - _ordered(b)).abs_()
        count += a.numel()
        equal += int((places == 0).sum())
        near += int((places <= 1).sum())
        largest = max(largest, float((a.float() - b.float()).abs().amax() / b.float().abs().amax()))
    return Difference(equal=equal / count, neighbours=near / count, largest=largest)


def _ordered(tensor: torch.Tensor) -> torch.Tensor:
    """Return the place of every value in the order of all values of bfloat16; both zeros have place 0."""
    bits = tensor.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)
