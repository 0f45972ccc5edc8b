"""Model Breadcrumbs: outliers and small entries of the task vectors removed (Davari and Belilovsky 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, real
from fusionbench_lite.methods.ties import ordered_sum
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.order import Band
from fusionbench_lite.weights.walks import Walk

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Breadcrumbs:
    """The settings of Breadcrumbs, the centre of the released code's search.

    `keep`: β, fraction of a row that is kept. `outliers`: γ, fraction of the largest entries removed before.
    `scaling`: α. `granularity`: a row is one along the last dimension ("row", the released code) or the whole tensor
    ("tensor", the paper's layers).
    """

    keep: float = real(0.15, low=0, high=1, open_low=True)
    outliers: float = real(0.006, low=0, high=1, open_high=True)
    scaling: float = real(0.2)
    granularity: str = choice("row", ("row", "tensor"))


@method("breadcrumbs", Breadcrumbs, label="Model Breadcrumbs")
def breadcrumbs(experts: Experts, h: Breadcrumbs) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + α Σ_t τ̃_t: of each row of n entries the ⌊γn⌋ largest magnitudes go, the next ⌊βn⌋ stay, the rest go.

    Of equal magnitudes at a border the first counts as larger; a tensor with no dimension is not masked. Cost:
    O(Td log n), one pass.
    """
    for name in experts.pending:
        if not experts.specs[name].shape:
            yield name, experts.combination(name, [h.scaling] * len(experts))
            continue
        yield name, _merged(experts, name, h)


def _merged(experts: Experts, name: str, h: Breadcrumbs) -> Tensor:
    walk, shape = experts.walk(name), experts.shape(name)
    length = shape[-1] if h.granularity == "row" else experts.numel(name)
    first, kept = int(h.outliers * length), int(h.keep * length)
    pieces = _by_row(walk, length, first, kept) if h.granularity == "row" else _as_a_whole(walk, first, kept)
    return walk.on_base(pieces, h.scaling).reshape(shape)


def _by_row(walk: Walk, length: int, first: int, kept: int) -> Iterator[tuple[slice, Tensor]]:
    """Walk Σ_t τ̃_t, masked in rows of this length."""
    for part, block in walk.blocks(unit=length):
        rows = block.reshape(len(block), -1, length)  # [T, rows, length]
        for vectors in rows:
            sizes = vectors.abs()
            vectors.mul_(Band.of(sizes, first, kept).mask(sizes))
        yield part, ordered_sum(rows).reshape(-1)


def _as_a_whole(walk: Walk, first: int, kept: int) -> Iterator[tuple[slice, Tensor]]:
    """Walk Σ_t τ̃_t, masked in the whole tensor: its magnitudes are ordered for one task after another, then all are masked."""
    bands = []
    for number in range(len(walk.flat)):
        sizes = walk.filled((part, block[0].abs_()) for part, block in walk.blocks(only=number))
        bands.append(Band.of(sizes.unsqueeze(0), first, kept, overwrite=True))
        del sizes
    for part, block in walk.blocks():
        for vector, band in zip(block, bands, strict=True):
            vector.mul_(band.mask(vector.abs().unsqueeze(0)).squeeze(0))
        yield part, ordered_sum(block)
