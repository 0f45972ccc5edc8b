"""SLERP and NuSLERP: two models along a great circle (Shoemake 1985; mergekit)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError
from fusionbench_lite.fields import choice, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.walks import Walk

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-8
"""Vectors of at most this norm are not normalised."""
PARALLEL = 0.9995
"""SLERP interpolates linearly where the cosine of the angle is beyond this."""
CLOSE = 0.99
"""Beyond this cosine, an angle that is needed exactly is taken from the distance of the directions."""


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
    _check_two("slerp", experts)
    for name in experts.pending:
        yield name, _merged(experts, name, NuSlerp(t=h.t, vectors="weights"), PARALLEL)


@method("nuslerp", NuSlerp, label="NuSLERP")
def nuslerp(experts: Experts, h: NuSlerp) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + SLERP(τ_1, τ_2; t), or of the weights without θ0; linear only where sin Ω vanishes.

    For two experts. Cost: O(d), one pass.
    """
    _check_two("nuslerp", experts)
    for name in experts.pending:
        yield name, _merged(experts, name, h)


def _merged(experts: Experts, name: str, h: NuSlerp, parallel: float | None = None) -> Tensor:
    walk, shape = experts.walk(name, weights=h.vectors == "weights"), experts.shape(name)
    circle = _Circle(walk, shape, h.dimension, h.t, parallel)
    if circle.plain and walk.base is not None:
        return experts.combination(name, circle.factors(), walk)
    return walk.on_base(circle.points()).reshape(shape)


def _check_two(name: str, experts: Experts) -> None:
    if len(experts) != 2:
        raise MergeError(f"{name} interpolates between two experts, got {len(experts)}: choose two of {', '.join(experts.tasks)}")


class _Circle:
    """Two tensors along great circles, block by block: one circle for all entries, or one along the last or the first dimension.

    Interpolation is linear where |cos Ω| > `parallel`, or where |sin Ω| < 1e-8 without it.
    """

    def __init__(self, walk: Walk, shape: tuple[int, ...], dimension: str, t: float, parallel: float | None = None) -> None:
        self._walk, self._t, self._parallel = walk, t, parallel
        self._flat = dimension == "flat" or len(shape) == 1
        self._last = not self._flat and dimension == "last"
        # A block is a matrix with vectors in its rows ("flat": one row), or its columns.
        self._along = 1 if self._flat or self._last else 0
        self._width = 0 if self._flat else shape[-1] if self._last else math.prod(shape[1:])

    @property
    def plain(self) -> bool:
        """Whether a sum of both tensors in the work dtype, one factor each, is what `points` gives: of weights of 16 bits."""
        return self._flat and self._walk.exact == torch.float32

    def factors(self) -> list[float]:
        """Return the factors of both tensors where there is one circle."""
        return [factor.item() for factor in self._shares(self._sums(), lambda units: self._apart(self._pairs(), units))]

    def points(self) -> Iterator[tuple[slice, Tensor]]:
        """Walk the points at t, slice by slice of the flattened tensor."""
        shares = None if self._last else self._shares(self._sums(), lambda units: self._apart(self._pairs(), units))
        for part, pair in self._pairs():
            left, right = self._shares_of(pair) if shares is None else shares
            a, b = pair.to(self._walk.exact)
            shape = (-1, 1) if self._along else (1, -1)
            yield part, a.mul_(left.to(a).reshape(shape)).add_(b.mul_(right.to(a).reshape(shape))).reshape(-1)

    def _pairs(self) -> Iterator[tuple[slice, Tensor]]:
        """Walk the blocks of both tensors as matrices [2, k, n]."""
        for part, block in self._walk.blocks(unit=max(1, self._width)):
            yield part, block.unsqueeze(1) if self._flat else block.reshape(2, -1, self._width)

    def _sums(self) -> Tensor:
        """Return ‖a‖², ‖b‖² and ⟨a, b⟩ of all vectors, [3, vectors] in float64."""
        if self._flat:
            products = self._walk.products()
            return torch.stack([products[0, 0], products[1, 1], products[0, 1]]).unsqueeze(1)
        return sum(self._products(pair) for _, pair in self._pairs())  # type: ignore[return-value]

    def _products(self, pair: Tensor) -> Tensor:
        a, b = pair.double()
        return torch.stack([(a * a).sum(self._along), (b * b).sum(self._along), (a * b).sum(self._along)])

    def _shares_of(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        return self._shares(self._products(pair), lambda units: self._apart([(slice(None), pair)], units))

    def _apart(self, pairs: Iterable[tuple[slice, Tensor]], units: Tensor) -> Tensor:
        """Return the lengths of a/|a| - b/|b| and of a/|a| + b/|b|, [2, vectors]; `units` [2, vectors] are |a| and |b|."""
        total: Tensor | None = None
        for _, pair in pairs:
            a, b = pair.double() / units.to(pair.device).unsqueeze(1 + self._along)
            squares = torch.stack([(a - b).square().sum(self._along), (a + b).square().sum(self._along)])
            total = squares if total is None else total + squares
        return torch.zeros_like(units) if total is None else total.sqrt()

    def _shares(self, sums: Tensor, apart: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the factors of both vectors, [vectors] each, from their sums [3, vectors]."""
        norms = sums[:2].sqrt()
        units = torch.where(norms > TINY, norms, 1.0)
        cosine = (sums[2] / units[0] / units[1]).clamp(-1, 1)
        angle = torch.acos(cosine)
        close = (norms > TINY).all(0) & (cosine.abs() > CLOSE)
        if self._parallel is None and bool(close.any()):
            # Accurate for opposite vectors as well, where the arc cosine is off by 1e-8 and so is its sine.
            difference, total = apart(units).to(angle)
            angle = torch.where(close, 2 * torch.atan2(difference, total), angle)
        sine = torch.sin(angle)
        linear = cosine.abs() > self._parallel if self._parallel is not None else sine.abs() < TINY
        divisor = torch.where(linear, 1.0, sine)
        left = torch.where(linear, 1 - self._t, torch.sin((1 - self._t) * angle) / divisor)
        right = torch.where(linear, self._t, torch.sin(self._t * angle) / divisor)
        return left, right
