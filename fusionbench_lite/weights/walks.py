"""One tensor of every model, held while a method passes over its blocks, so that files are read once for several passes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 19
"""Elements of all experts together that one block holds: what fits a core's cache."""
_FAR = 1 << 26
"""Elements of a block on a GPU, which has no use for small ones."""
_PIECE = 1 << 17
_DOTS = 8
"""So many experts at most have their inner products taken pair by pair: a product of matrices is slower with so few rows."""


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """θ_1 … θ_T of one tensor, `flat` [n] each as stored, and what is taken off them: θ0 [n], or None for the weights themselves.

    `dtype` is that of the arithmetic.
    """

    base: Tensor | None
    flat: list[Tensor]
    dtype: torch.dtype

    @property
    def exact(self) -> torch.dtype:
        """The dtype in which blocks are combined with rounding that counts: float64, but for weights of 16 bits the work dtype."""
        return self.dtype if self.flat[0].element_size() < 4 else torch.float64

    def blocks(self, unit: int = 1, only: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the flattened tensor and τ or θ [T, length], whose memory is that of the next block as well.

        Lengths are multiples of `unit`, but for the last. `only` this expert is in [1, length].
        """
        flat = self.flat if only is None else [self.flat[only]]
        count = len(flat[0])
        # A multiple of 8, so that masks can be packed block by block.
        length = max(4096, BLOCK // len(self.flat) & ~7) if flat[0].device.type == "cpu" else _FAR
        length = max(1, length // unit) * unit
        buffer = torch.empty((len(flat), min(length, count)), dtype=self.dtype, device=flat[0].device)
        for start in range(0, count, length):
            part = slice(start, min(start + length, count))
            block = buffer[:, : part.stop - part.start]
            origin = None if self.base is None else self.base[part].to(self.dtype)
            for row, weights in zip(block, flat, strict=True):
                if origin is None:
                    row.copy_(weights[part])
                else:
                    torch.sub(weights[part].to(self.dtype), origin, out=row)
            yield part, block

    def products(self) -> Tensor:
        """Return the inner products of the vectors [T, T] in float64."""
        count = len(self.flat)
        products = torch.zeros((count, count), dtype=torch.float64)
        pairwise = count <= _DOTS and self.flat[0].element_size() < 4 and self.flat[0].device.type == "cpu"
        for _, block in self.blocks():
            precise = block.double()
            if not pairwise:
                products += (precise @ precise.T).cpu()
                continue
            for one, other in itertools.combinations_with_replacement(range(count), 2):
                products[one, other] += torch.dot(precise[one], precise[other])
        return products.triu() + products.triu(1).T if pairwise else products

    def on_base(self, pieces: Iterator[tuple[slice, Tensor]], scaling: float = 1.0) -> Tensor:
        """Return θ0 + λ τ [n] for τ put together as `filled` does."""
        vectors = self.filled(pieces)
        return vectors if self.base is None else added(vectors, self.base, scaling)

    def filled(self, pieces: Iterator[tuple[slice, Tensor]]) -> Tensor:
        """Return a new tensor [n] in the work dtype, put together from slices and their values."""
        result = torch.empty(len(self.flat[0]), dtype=self.dtype, device=self.flat[0].device)
        for part, values in pieces:
            result[part] = values
        return result


def added(vectors: Tensor, base: Tensor, scaling: float = 1.0) -> Tensor:
    """Return θ0 + λ τ [n] in the memory of τ, `vectors`."""
    length = _PIECE if vectors.device.type == "cpu" else _FAR
    for start in range(0, len(vectors), length):
        part = slice(start, start + length)
        piece = vectors[part] if scaling == 1 else vectors[part].mul_(scaling)
        piece.add_(base[part].to(piece.dtype))
    return vectors
