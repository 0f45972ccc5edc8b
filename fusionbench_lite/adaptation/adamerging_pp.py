"""AdaMerging++: AdaMerging on task vectors that TIES has trimmed and stripped of sign conflicts (Yang et al. 2024)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fusionbench_lite.adaptation.adamerging import AdaMerging
from fusionbench_lite.fields import integer
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.ties import Vectors as TiesVectors
from fusionbench_lite.methods.ties import cancels, ordered_sum, trim, trim_thresholds
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.adaptation.engine.descent import Learner

KEEP = 0.2
"""The part of each task vector that is kept, counted over the whole model."""

BLOCK = 1 << 16
"""Entries of a tensor whose signs a processor elects at once: those of eight tasks stay in its cache."""


@dataclasses.dataclass(frozen=True)
class AdaMergingPlusPlus(AdaMerging):
    """As AdaMerging; `virtual_zeros`: as in TIES-Merging."""

    virtual_zeros: int = integer(0, low=0, later=True)


def _cost(s: costs.Setting) -> costs.Cost:
    """Three passes before; counters of 65,536 bins and keys of a block are small beside a tensor."""
    return costs.Cost(tuple(dataclasses.replace(tensors, setup=10 * tensors.setup) for tensors in costs.vectors(s)))


@method(
    "adamerging_pp_taskwise", AdaMergingPlusPlus, adaptive=True, label="AdaMerging++ (task-wise)",
    learned=costs.task_coefficients, cost=_cost,
)
def adamerging_pp_taskwise(experts: Experts, h: AdaMergingPlusPlus) -> Learner:
    """One λ per task: θ_l = θ0_l + Σ_t clamp(λ_t, 0, 1) τ̂_tl with the task vectors of TIES (AdaMerging, Section 3.2).

    τ̂_t holds the largest 20 % of the entries of τ_t over the whole model, less those whose sign is not the elected one
    of their coordinate. λ is learned as in adamerging_taskwise. Cost: as adamerging_pp_layerwise.
    """
    return _learner(experts, h, shared=True)


@method(
    "adamerging_pp_layerwise", AdaMergingPlusPlus, adaptive=True, label="AdaMerging++ (layer-wise)",
    learned=costs.coefficients, cost=_cost,
)
def adamerging_pp_layerwise(experts: Experts, h: AdaMergingPlusPlus) -> Learner:
    """One λ per task and tensor: θ_l = θ0_l + Σ_t clamp(λ_tl, 0, 1) τ̂_tl with the task vectors of TIES (AdaMerging,
    Section 3.2).

    τ̂ is as in adamerging_pp_taskwise, and nothing is averaged: at λ = 0.3 the start is TIES with summed entries. λ is
    learned as in adamerging_layerwise. Cost: three passes over the task vectors before; per step that of
    adamerging_layerwise.
    """
    return _learner(experts, h, shared=False)


def _learner(experts: Experts, h: AdaMergingPlusPlus, *, shared: bool) -> Learner:
    from fusionbench_lite.adaptation.engine.descent import descend
    from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
    from fusionbench_lite.adaptation.engine.parts import Vectors

    parts = {name: Vectors(experts.base(name), vectors) for name, vectors in elected_vectors(experts, h.virtual_zeros).items()}
    return descend(Parametrisation(experts, parts, h.scaling, lr=h.lr, clamp=h.clamp, shared=shared))


def elected_vectors(experts: Experts, virtual_zeros: int = 0) -> dict[str, Tensor]:
    """Return τ̂ [T, *shape] of every tensor: trimmed, and zero where the sign is not the elected one.

    A coordinate whose trimmed entries cancel exactly takes the majority of all elected signs, as in TIES; that is
    known only at the end, so the blocks with such a coordinate wait for it.
    """
    from fusionbench_lite.adaptation.engine.placement import forget, put

    thresholds = trim_thresholds(TiesVectors.of(experts, experts.names), KEEP, virtual_zeros)
    balance, deferred, result = 0, [], {}
    for name in experts.names:
        result[name] = put(experts.task_vectors(name))
        for block in torch.split(result[name].flatten(1), BLOCK, dim=1):
            sign = ordered_sum(trim(block, thresholds)).sign_()
            balance += int(sign.sum(dtype=torch.float64).item())
            if cancels(block, sign):
                deferred.append(block)
            else:
                _keep_elected(block, sign)
        forget(result[name])
    majority = 1 if balance > 0 else -1
    for block in deferred:
        sign = ordered_sum(block).sign_()
        _keep_elected(block, sign + majority * (sign == 0))
    return result


def _keep_elected(trimmed: Tensor, sign: Tensor) -> None:
    """Set the entries of τ̂ [T, length] to zero, in place, that do not have the elected sign [length]."""
    trimmed.mul_(sign).relu_().mul_(sign)
