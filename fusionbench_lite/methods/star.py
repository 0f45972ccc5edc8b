"""STAR: spectral truncation and rescale, then the average (Lee et al. 2025)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import SVD, method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import Components, decompose, low_rank
from fusionbench_lite.weights.parallel import in_turns
from fusionbench_lite.weights.ranks import Ranks
from fusionbench_lite.weights.rounding import rounding

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Star:
    """`eta`: η, the percentage of every task vector's nuclear norm that its kept components hold at least."""

    eta: float = real(40.0, low=0, high=100, open_low=True)


@method("star", Star, label="STAR", family=SVD)
def star(experts: Experts, h: Star) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + (1/T) Σ_t τ'_t: of each τ_t the fewest components with η % of the nuclear norm, rescaled to all of it.

    Tensors that are not matrices are averaged. Cost: T decompositions per matrix; of low-rank adapters, of side r.
    """
    ranks = Ranks("star")
    for name in experts.pending:
        if len(experts.shape(name)) != 2:
            yield name, experts.combination(name, [1 / len(experts)] * len(experts))
            continue
        total = experts.base(name).to(torch.float64, copy=True)
        components = in_turns(functools.partial(_components, experts, name), experts.tasks)
        for task, (left, values, right) in zip(experts.tasks, components, strict=True):
            kept = _kept(values, h.eta / 100, sum(experts.shape(name)))
            if kept:
                ranks.cut(f"{name!r} of expert {task!r}", kept, sum(experts.shape(name)))(values.square())
                factor = values.sum() / values[:kept].sum() / len(experts)
                total.addmm_(left[:, :kept] * values[:kept], right[:kept], alpha=float(factor))
        yield name, total.to(experts.work_dtype(name))
    ranks.warn()


def _components(experts: Experts, name: str, task: str) -> Components:
    factors = experts.factors(task, name)
    if factors is not None:
        return low_rank(*factors)
    return decompose(experts.task_vector(task, name), f"{name!r} of expert {task!r}")


def _kept(values: Tensor, part: float, operations: int) -> int:
    """Return the least r with Σ_{i≤r} σ_i ≥ part · Σ σ_i, 0 for a zero matrix.

    A part that is reached but for the rounding of `operations` is reached: half of four equal values are two.
    """
    if not values.any():
        return 0
    if part == 1:
        return len(values)
    cumulative = values.cumsum(0)
    return int(torch.searchsorted(cumulative, (part - rounding(operations, values.dtype)) * cumulative[-1])) + 1
