"""TIES-Merging: trim, elect sign, disjoint merge (Yadav et al. 2023)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import choice, integer, method, real
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.order import kth_magnitude

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class TiesMerging:
    """The settings of TIES.

    `keep`: fraction of each task vector that survives trimming, counted over the whole model. `reduce`: how agreeing
    entries combine; the OC8 and Hugging Face rows of the papers use "sum", the TIES paper and the 14/20-task rows
    "mean". `scaling`: λ. `virtual_zeros`: zero coordinates counted in the trimming quantile beyond those of the state
    dict, to reproduce checkpoints whose frozen text-side leftovers are not loaded (25,599,489 for ViT-B/32).
    """

    keep: float = real(0.2, low=0, high=1, open_low=True)
    reduce: str = choice("sum", ("sum", "mean", "max"))
    scaling: float = real(0.3)
    virtual_zeros: int = integer(0, low=0)


@method("ties_merging", TiesMerging)
def ties_merging(experts: Experts, h: TiesMerging) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ τ_m, where τ_m merges the trimmed entries that agree with the elected sign.

    A coordinate whose trimmed entries cancel exactly takes the majority of all elected signs. That majority is known
    only at the end, so the few tensors with such a coordinate are computed once more then.
    """
    thresholds = {task: trim_threshold(experts, task, h.keep, h.virtual_zeros) for task in experts.tasks}
    balance, deferred = 0, []
    for name in experts.names:
        trimmed = trim(experts, name, thresholds)
        sign = trimmed.sum(0).sign()
        balance += int(sign.sum(dtype=torch.float64).item())
        if bool(((sign == 0) & trimmed.any(0)).any()):
            deferred.append(name)
        else:
            yield name, experts.base(name) + h.scaling * disjoint_merge(trimmed, sign, h.reduce)
    majority = (balance > 0) - (balance < 0)
    for name in deferred:
        trimmed = trim(experts, name, thresholds)
        sign = trimmed.sum(0).sign()
        sign = torch.where(sign == 0, float(majority), sign)
        yield name, experts.base(name) + h.scaling * disjoint_merge(trimmed, sign, h.reduce)


def trim_threshold(experts: Experts, task: str, keep: float, virtual_zeros: int) -> Tensor:
    """Return the magnitude from which an entry of the task vector is kept (TIES convention, specification §0.4).

    With d coordinates the threshold is the k-th smallest magnitude, k = d - ⌊keep·d⌋; where k is 0 it is 0 and
    nothing is trimmed.
    """
    size = virtual_zeros + sum(experts.pretrained[name].numel() for name in experts.names)
    k = size - int(keep * size)
    if k == 0 or not experts.names:
        return torch.zeros(())
    # One dtype for all tensors, because bit patterns are compared: the widest, which holds every value exactly.
    wide = functools.reduce(torch.promote_types, map(experts.work_dtype, experts.names))
    return kth_magnitude(
        lambda: (experts.task_vector(task, name).to(wide) for name in experts.names), k, virtual_zeros
    )


def trim(experts: Experts, name: str, thresholds: dict[str, Tensor]) -> Tensor:
    """Return the trimmed task vectors τ̂_t of one tensor, [T, *shape]."""
    trimmed = experts.task_vectors(name)
    for row, task in zip(trimmed, experts.tasks, strict=True):
        row.mul_(row.abs() >= thresholds[task].to(row.device))
    return trimmed


def disjoint_merge(trimmed: Tensor, sign: Tensor, reduce: str) -> Tensor:
    """Return τ_m of one tensor from τ̂ [T, *shape] and the elected signs [*shape]; sign 0 counts as negative."""
    agreeing = trimmed * torch.where(sign > 0, trimmed > 0, trimmed < 0)
    if reduce == "max":
        return sign * agreeing.abs().amax(0)
    total = agreeing.sum(0)
    return total if reduce == "sum" else total / agreeing.count_nonzero(0).clamp_min(1)
