"""AWD AM: AdaMerging on task vectors from which one redundant vector was taken (Xiong et al. 2024).

A reconstruction, as awd_ta is.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, flag, integer, real
from fusionbench_lite.methods.awd import AwdTa, redundant_vectors
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.descent import Learner


@dataclasses.dataclass(frozen=True)
class AwdAm:
    """The settings of AWD's redundant vector and of AdaMerging.

    `alpha`: weight of the norm of the redundant vector δ. `awd_lr`, `awd_steps`: of its descent from δ = 0. `group`:
    cosines per tensor or over the whole model ("global"). `optimizer`: of δ, gradient descent ("gd") or "adam".
    `scaling`: the initial λ everywhere. `clamp`: limit λ to [0, 1] in the merge. `lr`: Adam's learning rate for λ.
    """

    alpha: float = real(0.1, low=0)
    awd_lr: float = real(0.01, low=0, open_low=True)
    awd_steps: int = integer(300, low=0)
    group: str = choice("tensor", ("tensor", "global"))
    optimizer: str = choice("gd", ("gd", "adam"))
    scaling: float = real(0.3)
    clamp: bool = flag(True)
    lr: float = real(1e-3, low=0, open_low=True)


def _learned(of: Architecture, tasks: int, h: AwdAm) -> costs.Learned:
    """The redundant vector before the steps, λ in them."""
    counts = {"redundant vector": of.parameters, "coefficients": tasks * of.count}
    return costs.Learned(counts, before=frozenset({"redundant vector"}))


def _cost(s: costs.Setting) -> costs.Cost:
    adam, steps = s.h.optimizer == "adam", s.h.awd_steps if s.h.optimizer == "adam" else 1
    tensors = []
    for shape in s.architecture.tensors.values():
        held, size = costs.task_vectors(s, shape), math.prod(shape)
        room = held.room + (8 * 4 * size if adam else 0) + size * costs.WORK
        tensors.append(dataclasses.replace(held, room=room, setup=steps * 2 * s.tasks**2 * size))
    return costs.Cost(tuple(tensors))


@method("awd_am", AwdAm, adaptive=True, label="AWD AM", learned=_learned, cost=_cost)
def awd_am(experts: Experts, h: AwdAm) -> Learner:
    """θ_l = θ0_l + Σ_t clamp(λ_tl, 0, 1) (τ_tl - δ_l), δ as in awd_ta.

    λ is learned as in adamerging_layerwise. Cost: that of awd_ta before; per step that of adamerging_layerwise.
    """
    from fusionbench_lite.adaptation.engine.descent import descend
    from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
    from fusionbench_lite.adaptation.engine.parts import Part, Vectors

    settings = AwdTa(alpha=h.alpha, lr=h.awd_lr, steps=h.awd_steps, group=h.group, optimizer=h.optimizer)
    parts: dict[str, Part] = {}
    for names, redundant in redundant_vectors(experts, settings):
        for name in names:
            vectors = experts.task_vectors(name)
            flat = vectors.flatten(1)
            flat -= redundant[name].to(flat) if isinstance(redundant, dict) else redundant.to(flat) @ flat
            parts[name] = Vectors(experts.base(name), vectors)
    return descend(Parametrisation(experts, parts, h.scaling, lr=h.lr, clamp=h.clamp))
