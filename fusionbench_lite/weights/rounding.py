"""Which gradients are made of rounding alone: Adam divides such a gradient by itself, and weights would follow the processor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

CONFIDENCE = 8.0
"""λ of the probabilistic bound: a sum of n terms exceeds it with probability 2n exp(-λ²/2) at most, n · 3e-14."""


def rounding(operations: int, dtype: torch.dtype) -> float:
    """Return what `operations` roundings in a row change a sum by, as a part of the sum of its terms' magnitudes.

    With the unit roundoff u = eps/2 no order of summation exceeds nu, and roundings that do not conspire stay below λ√n u
    (Higham and Mary 2019, Theorem 2.4); the smaller of the two.
    """
    return min(float(operations), CONFIDENCE * math.sqrt(operations)) * torch.finfo(dtype).eps / 2


class Still:
    """The places of a parameter whose gradient has been rounding ever since the first step: theirs counts as zero.

    Only these: where a gradient was more than rounding once, Adam's second moment remembers it, and rounding moves nothing. So
    ordinary inputs are looked at in the first step and never changed. `dim` None judges every entry, else the norms along
    this dimension.
    """

    def __init__(self, dim: int | None = None) -> None:
        self.dim = dim
        self._places: Tensor | None = None
        self._any = True

    def settle(self, gradient: Tensor, bound: Callable[[], Tensor]) -> None:
        """Set the gradient to zero in the places that are still, in place; `bound()` is the rounding of the gradient's entries,
        or of its norms along `dim`, which is kept."""
        if not self._any:
            return
        size = gradient.abs() if self.dim is None else torch.linalg.vector_norm(gradient, dim=self.dim, keepdim=True)
        limit = bound()
        still = (size <= limit) & (limit > 0)  # what is made of zeros stays zero by itself
        self._places = still if self._places is None else self._places & still
        self._any = bool(self._places.any())
        if self._any:
            gradient.masked_fill_(self._places, 0)
