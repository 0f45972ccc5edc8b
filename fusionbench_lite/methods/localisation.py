"""TALL-masks and Consensus Merging: which weights of the merged vector a task uses (Wang et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.fields import choice, integer, real, real_per_task
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.ties import Vectors, merged_vectors, ordered_sum
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.compact import Masked, pack
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from torch import Tensor

KEEP = 0.2
"""The part of a task vector that TIES keeps where it builds the merged vector, by sum (released code)."""


@dataclasses.dataclass(frozen=True)
class TallMasks:
    """The settings of TALL-masks.

    `threshold`: λ_t, one number or one per task; the papers choose it in {0.2, …, 0.6} on labelled validation data,
    0.4 is the value without data. `base`: the merged vector, the plain sum ("ta") or TIES with 20 % and sum.
    `virtual_zeros`: as in TIES-Merging.
    """

    threshold: float | Mapping[str, float] = real_per_task(0.4, low=0)
    base: str = choice("ta", ("ta", "ties"))
    virtual_zeros: int = integer(0, low=0)


@dataclasses.dataclass(frozen=True)
class ConsensusTa:
    """The settings of Consensus Merging.

    `threshold`: λ_t of the masks, as in TALL-masks. `min_tasks`: k, the number of tasks whose mask must hold a weight;
    2 drops what no task and what one task alone uses. `scaling`: α.
    """

    threshold: float | Mapping[str, float] = real_per_task(0.4, low=0)
    min_tasks: int = integer(2, low=0)
    scaling: float = real(0.3)


@dataclasses.dataclass(frozen=True)
class ConsensusTies(ConsensusTa):
    """As ConsensusTa; `virtual_zeros`: as in TIES-Merging."""

    virtual_zeros: int = integer(0, low=0)


def _learned(of: Architecture, tasks: int, h: TallMasks) -> costs.Learned:
    return costs.masked_vector(of, tasks)


@method("tall_masks", TallMasks, per_task=True, label="TALL-masks", learned=_learned)
def tall_masks(experts: Experts, h: TallMasks) -> Iterator[tuple[str, Masked]]:
    """θ̂_t = θ0 + M_t ⊙ τ_m with M_t = 1[|τ_t| > λ_t |τ_m - τ_t|] (TALL-masks); one model per task.

    Stored as τ_m and one bit per weight and task. Cost: O(Td), one pass, four from TIES.
    """
    thresholds = per_task(experts, h.threshold)
    for name, merged in _merged(experts, h.base, h.virtual_zeros):
        bits = [pack(masks) for _, masks in _masks(experts, name, merged, thresholds)]
        yield name, Masked(experts=experts, name=name, vector=merged, bits=torch.cat(bits, dim=1))


@method("consensus_ta", ConsensusTa, label="Consensus TA")
def consensus_ta(experts: Experts, h: ConsensusTa) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + α C ⊙ τ_m with C = 1[Σ_t M_t ≥ k], the masks of TALL-masks and τ_m = Σ_t τ_t.

    Cost: O(Td), two passes.
    """
    yield from _consensus(experts, h, "ta", 0)


@method("consensus_ties", ConsensusTies, label="Consensus TIES")
def consensus_ties(experts: Experts, h: ConsensusTies) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + α C ⊙ τ_m as consensus_ta, with τ_m from TIES (20 %, sum).

    Cost: O(Td), four passes.
    """
    yield from _consensus(experts, h, "ties", h.virtual_zeros)


def _consensus(experts: Experts, h: ConsensusTa, base: str, virtual_zeros: int) -> Iterator[tuple[str, Tensor]]:
    thresholds = per_task(experts, h.threshold)
    for name, merged in _merged(experts, base, virtual_zeros):
        for part, masks in _masks(experts, name, merged, thresholds):
            merged[part] *= masks.sum(0) >= h.min_tasks
        yield name, experts.base(name) + h.scaling * merged.reshape(experts.shape(name))


def _merged(experts: Experts, base: str, virtual_zeros: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the merged vector τ_m of every tensor, flattened: Σ_t τ_t, or that of TIES."""
    if base == "ties":
        yield from merged_vectors(Vectors.of(experts, experts.names), KEEP, "sum", virtual_zeros)
        return
    for name in experts.names:
        yield name, experts.filled(name, ((part, ordered_sum(block)) for part, block in experts.blocks(name)))


def _masks(
    experts: Experts, name: str, merged: Tensor, thresholds: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Walk the masks M_t [T, length] of one tensor, compared in float64."""
    thresholds = thresholds.to(merged.device)
    for part, block in experts.blocks(name):
        yield part, block.abs().double() > (merged[part] - block).abs_().double() * thresholds


def per_task(experts: Experts, value: float | Mapping[str, float]) -> Tensor:
    """Return one number per task as a column [T, 1]; raises MergeError unless a mapping has exactly the tasks."""
    if not isinstance(value, Mapping):
        value = dict.fromkeys(experts.tasks, value)
    for task in experts.tasks:
        if task not in value:
            raise MergeError(f"threshold lacks task {task!r}: give a number for each of {', '.join(experts.tasks)}")
    for task in value:
        if task not in experts.tasks:
            raise MergeError(f"threshold has task {task!r}, which no expert has: {did_you_mean(task, experts.tasks)}")
    return torch.tensor([value[task] for task in experts.tasks], dtype=torch.float64).reshape(-1, 1)  # [T, 1]
