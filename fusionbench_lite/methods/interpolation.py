"""SLERP and NuSLERP: two models along a great circle (Shoemake 1985; mergekit)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError
from fusionbench_lite.fields import choice, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-8
"""Vectors of at most this norm are not normalised."""
PARALLEL = 0.9995
"""SLERP interpolates linearly where the cosine of the angle is beyond this."""


@dataclasses.dataclass(frozen=True)
class Slerp:
    """`t`: position between the first expert (0) and the second (1)."""

    t: float = real(0.5, low=0, high=1)


@dataclasses.dataclass(frozen=True)
class NuSlerp:
    """The settings of NuSLERP.

    `t`: position between the first expert (0) and the second (1), w₂ / (w₁ + w₂) in mergekit's weights. `vectors`: what
    is interpolated, task vectors added to θ0, or weights. `dimension`: one angle for the whole tensor ("flat"), or one
    per vector along the last or the first dimension.
    """

    t: float = real(0.5, low=0, high=1)
    vectors: str = choice("task_vectors", ("task_vectors", "weights"))
    dimension: str = choice("flat", ("flat", "last", "first"))


@method("slerp", Slerp, label="SLERP")
def slerp(experts: Experts, h: Slerp) -> Iterator[tuple[str, Tensor]]:
    """θ = sin((1-t)Ω)/sin Ω θ_1 + sin(tΩ)/sin Ω θ_2 per tensor, Ω the angle between θ_1 and θ_2; linear near Ω = 0.

    For two experts; θ0 is not used. Cost: O(d), one pass.
    """
    first, second = _two("slerp", experts)
    for name in experts.pending:
        a, b = experts.expert(first, name), experts.expert(second, name)
        yield name, _on_circle(a.reshape(1, -1), b.reshape(1, -1), h.t, parallel=PARALLEL).reshape(a.shape)


@method("nuslerp", NuSlerp, label="NuSLERP")
def nuslerp(experts: Experts, h: NuSlerp) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + SLERP(τ_1, τ_2; t), or of the weights without θ0; linear only where sin Ω vanishes.

    For two experts. Cost: O(d), one pass.
    """
    first, second = _two("nuslerp", experts)
    for name in experts.pending:
        base = experts.base(name)
        read = experts.task_vector if h.vectors == "task_vectors" else experts.expert
        a, b = read(first, name), read(second, name)
        if h.dimension == "flat" or a.dim() == 1:
            merged = _on_circle(a.reshape(1, -1), b.reshape(1, -1), h.t)  # [1, n]
        elif h.dimension == "last":
            merged = _on_circle(a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]), h.t)  # [n / last, last]
        else:
            merged = _on_circle(a.reshape(len(a), -1).T, b.reshape(len(a), -1).T, h.t).T  # [m, n / m]
        merged = merged.reshape(a.shape)
        yield name, base + merged if h.vectors == "task_vectors" else merged


def _two(name: str, experts: Experts) -> tuple[str, str]:
    if len(experts) != 2:
        raise MergeError(f"{name} interpolates between two experts, got {len(experts)}: choose two of {', '.join(experts.tasks)}")
    return experts.tasks[0], experts.tasks[1]


def _on_circle(a: Tensor, b: Tensor, t: float, parallel: float | None = None) -> Tensor:
    """Interpolate the rows of a and b [k, n]; linear where |cos Ω| > `parallel`, or where |sin Ω| < 1e-8 without it."""
    a64, b64 = a.double(), b.double()
    norms = torch.linalg.vector_norm(a64, dim=1), torch.linalg.vector_norm(b64, dim=1)
    units = [torch.where(norm > TINY, norm, 1.0) for norm in norms]
    first, second = a64 / units[0].unsqueeze(1), b64 / units[1].unsqueeze(1)  # [k, n]
    cosine = (first * second).sum(1)
    # Accurate for opposite vectors as well, where the arc cosine is off by 1e-8 and so is its sine.
    apart, along = torch.linalg.vector_norm(first - second, dim=1), torch.linalg.vector_norm(first + second, dim=1)
    normalised = (norms[0] > TINY) & (norms[1] > TINY)
    angle = torch.where(normalised, 2 * torch.atan2(apart, along), torch.acos(cosine.clamp(-1, 1)))
    sine = torch.sin(angle)
    linear = cosine.abs() > parallel if parallel is not None else sine.abs() < TINY
    divisor = torch.where(linear, 1.0, sine)
    left = torch.where(linear, 1 - t, torch.sin((1 - t) * angle) / divisor)
    right = torch.where(linear, t, torch.sin(t * angle) / divisor)
    return (left.unsqueeze(1) * a64 + right.unsqueeze(1) * b64).to(a.dtype)
