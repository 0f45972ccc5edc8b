"""DARE: task vectors with random entries dropped and the rest rescaled, before another merge (Yu et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.base import randomness
from fusionbench_lite.fields import integer, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.ties import TiesMerging, Vectors, merged_vectors, ordered_sum
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class TaDare:
    """`drop_rate`: p, the probability that an entry is dropped. `seed`: of the masks. `scaling`: λ."""

    drop_rate: float = real(0.5, low=0, high=1, open_high=True)
    seed: int = integer(0)
    scaling: float = real(0.3)


@dataclasses.dataclass(frozen=True)
class TiesDare(TiesMerging):
    """As in TIES-Merging, and `drop_rate`: p, the probability that an entry is dropped. `seed`: of the masks."""

    drop_rate: float = real(0.5, low=0, high=1, open_high=True)
    seed: int = integer(0)


@method("ta_dare", TaDare, label="Task arithmetic w/ DARE")
def ta_dare(experts: Experts, h: TaDare) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ Σ_t M_t ⊙ τ_t / (1 - p), M_t Bernoulli(1 - p) per coordinate.

    Cost: O(Td), one pass.
    """
    for name in experts.pending:
        blocks = _dropped(experts, name, h.drop_rate, h.seed)
        merged = experts.filled(name, ((part, ordered_sum(block)) for part, block in blocks))
        yield name, experts.added(name, merged, h.scaling)
        del merged  # lest it is in memory while the next one is computed


@method("ties_dare", TiesDare, label="TIES-Merging w/ DARE")
def ties_dare(experts: Experts, h: TiesDare) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ τ_m as ties_merging, of the task vectors M_t ⊙ τ_t / (1 - p) with M_t as ta_dare.

    Cost: O(Td), three passes, the masks drawn in each.
    """
    plain = Vectors.of(experts, [name for name in experts.names if h.count_tied or name not in experts.tied])
    vectors = dataclasses.replace(plain, blocks=lambda name: _dropped(experts, name, h.drop_rate, h.seed))
    for name, merged in merged_vectors(vectors, h.keep, h.reduce, h.virtual_zeros, continued=experts):
        yield name, experts.added(name, merged, h.scaling)
        del merged  # lest it is in memory while the next one is computed


def _dropped(experts: Experts, name: str, rate: float, seed: int) -> Iterator[tuple[slice, Tensor]]:
    """Walk the blocks of the task vectors with entries dropped.

    Every mask is a stream of its own, keyed by seed, task and tensor: neither the order of the tensors nor the block
    size changes it.
    """
    key = experts.tied.get(name, name)
    streams = [torch.Generator().manual_seed(randomness.seed_of(seed, task, key, "dare") >> 1) for task in experts.tasks]
    for part, block in experts.blocks(name):
        for row, stream in zip(block, streams, strict=True):
            if rate > 0:
                kept = torch.rand(len(row), generator=stream, dtype=torch.float64) >= rate
                row.mul_(kept.to(row.device)).div_(1 - rate)
        yield part, block
