"""TIES-Merging: trim, elect sign, disjoint merge (Yadav et al. 2023)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, flag, integer, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.order import kth_values

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class TiesMerging:
    """The settings of TIES.

    `keep`: fraction of each task vector that survives trimming, counted over the whole model. `reduce`: how agreeing
    entries combine; the OC8 and Hugging Face rows of the papers use "sum", the TIES paper and the 14/20-task rows
    "mean". `scaling`: λ. `virtual_zeros`: zero coordinates counted in the trimming quantile beyond those of the state
    dict, to reproduce checkpoints whose frozen text-side leftovers are not loaded (25,599,489 for ViT-B/32).
    `count_tied`: whether a tensor that the state dict lists twice counts twice in the quantile, as in FusionBench;
    the original T5 runs drop the repetitions.
    """

    keep: float = real(0.2, low=0, high=1, open_low=True)
    reduce: str = choice("sum", ("sum", "mean", "max"))
    scaling: float = real(0.3)
    virtual_zeros: int = integer(0, low=0)
    count_tied: bool = flag(True)


@method("ties_merging", TiesMerging, label="TIES-Merging")
def ties_merging(experts: Experts, h: TiesMerging) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ τ_m: at every coordinate τ_m is the sum (the mean, the largest) of the trimmed entries τ̂_t whose sign is
    the elected one, sgn Σ_t τ̂_t. Trimming keeps the largest magnitudes of τ_t and sets the others to zero.

    Cost: O(Td), three passes.
    """
    vectors = Vectors.of(experts, [name for name in experts.names if h.count_tied or name not in experts.tied])
    for name, merged in merged_vectors(vectors, h.keep, h.reduce, h.virtual_zeros, continued=experts):
        yield name, experts.added(name, merged, h.scaling)
        del merged  # lest it is in memory while the next one is computed


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Task vectors to be merged: `sizes` of the tensors by name, and `blocks(name)`, which walks τ [T, length]."""

    sizes: Mapping[str, int]
    blocks: Callable[[str], Iterator[tuple[slice, Tensor]]]
    dtype: torch.dtype

    @classmethod
    def of(cls, experts: Experts, names: list[str]) -> Vectors:
        """Return the plain task vectors of these tensors."""
        # One dtype for all tensors, because bit patterns are compared: the widest, which holds every value exactly.
        wide = functools.reduce(torch.promote_types, map(experts.work_dtype, names), torch.float32)
        return cls({name: experts.numel(name) for name in names}, experts.blocks, wide)


def merged_vectors(
    vectors: Vectors, keep: float, reduce: str, virtual_zeros: int = 0, *, continued: Experts | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield τ_m of TIES, one flattened tensor after another.

    A coordinate whose trimmed entries cancel exactly takes the majority of all elected signs. That majority is known
    only at the end, so the few tensors with such a coordinate are computed once more then. Tensors that are finished in
    `continued` are passed over; thresholds and votes are its notes.
    """
    thresholds = _thresholds(vectors, keep, virtual_zeros, continued)
    balance, deferred = 0, []
    for name in vectors.sizes:
        if continued is not None and name in continued.finished:
            balance += continued.notes[f"votes of {name}"]
            continue
        merged, votes, cancelled = _merge(vectors, name, thresholds, reduce, 0)
        balance += votes
        if continued is not None:
            continued.notes[f"votes of {name}"] = votes
        if cancelled:
            deferred.append(name)
        else:
            yield name, merged
        del merged
    majority = (balance > 0) - (balance < 0)
    for name in deferred:
        yield name, _merge(vectors, name, thresholds, reduce, majority)[0]


def _thresholds(vectors: Vectors, keep: float, virtual_zeros: int, continued: Experts | None) -> Tensor:
    def exact() -> list[str]:
        return [value.hex() for value in trim_thresholds(vectors, keep, virtual_zeros).reshape(-1).tolist()]

    noted = exact() if continued is None else continued.note("thresholds", exact)
    return torch.tensor([float.fromhex(value) for value in noted], dtype=vectors.dtype)


def trim_thresholds(vectors: Vectors, keep: float, virtual_zeros: int = 0) -> Tensor:
    """Return, per task [T], the magnitude from which an entry is kept (the released code of TIES; docs/decisions.md, D12).

    With d coordinates the threshold is the k-th smallest magnitude, k = d - ⌊keep·d⌋; where k is 0 it is 0 and
    nothing is trimmed.
    """
    size = virtual_zeros + sum(vectors.sizes.values())
    k = size - int(keep * size)
    if k == 0 or not vectors.sizes:
        return torch.zeros(())
    return kth_values(
        lambda: (block.to(vectors.dtype) for name in vectors.sizes for _, block in vectors.blocks(name)),
        k, virtual_zeros, magnitude=True,
    )


def trim(block: Tensor, thresholds: Tensor) -> Tensor:
    """Return τ̂ [T, length]: entries below their task's threshold are zero. `block` is overwritten."""
    zero = torch.zeros((), dtype=block.dtype)
    for row, threshold in zip(block, thresholds.expand(len(block)).tolist(), strict=True):
        if threshold > 0:
            # hardshrink keeps what is larger than its bound, here the largest number below the threshold.
            bound = torch.tensor(threshold, dtype=block.dtype)
            bound = torch.nextafter(bound, zero) if bound.item() >= threshold else bound
            torch.hardshrink(row, bound.item(), out=row)
    return block


def _merge(
    vectors: Vectors, name: str, thresholds: Tensor, reduce: str, majority: int
) -> tuple[Tensor, int, bool]:
    """Return τ_m of one tensor, the sum of its elected signs, and whether trimmed entries cancel somewhere."""
    balance, cancelled = 0, False
    result: Tensor | None = None
    for part, block in vectors.blocks(name):
        trimmed = trim(block, thresholds)
        sign = ordered_sum(trimmed).sign_()
        balance += int(sign.sum(dtype=torch.float64).item())
        cancelled = cancelled or cancels(trimmed, sign)
        if majority:
            sign += majority * (sign == 0).to(sign.dtype)
        if result is None:
            result = block.new_empty(vectors.sizes[name])
        result[part] = disjoint_merge(trimmed, sign, reduce)
    assert result is not None  # no tensor without elements is listed
    return result, balance, cancelled


def ordered_sum(rows: Tensor) -> Tensor:
    """Return Σ_t of rows [T, length], added in task order."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


def cancels(trimmed: Tensor, sign: Tensor) -> bool:
    """Say whether trimmed entries [T, length] add up to exactly zero somewhere; `sign` [length] is that of their sum."""
    return bool(((sign == 0) & _any(trimmed)).any())


def _any(rows: Tensor) -> Tensor:
    """Return where some row [T, length] is not zero: bit patterns combine faster than comparisons."""
    patterns = rows.view(torch.int64 if rows.dtype == torch.float64 else torch.int32)
    union = patterns[0].clone()
    for row in patterns[1:]:
        union |= row
    return (union & torch.iinfo(union.dtype).max) != 0  # without the sign, which a negative zero has


def disjoint_merge(trimmed: Tensor, sign: Tensor, reduce: str) -> Tensor:
    """Return τ_m [length] from τ̂ [T, length] and the elected signs [length]; sign 0 counts as negative.

    `trimmed` is overwritten.
    """
    side = sign - (sign == 0).to(sign.dtype)
    # Times the elected side, agreeing entries are positive and the others are cut off.
    agreeing = trimmed.mul_(side).relu_()
    if reduce == "max":
        return sign * agreeing.amax(0)
    total = side * ordered_sum(agreeing)
    return total if reduce == "sum" else total / agreeing.count_nonzero(0).clamp_min(1)
