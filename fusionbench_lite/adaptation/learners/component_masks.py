"""The singular components that AdaRank's variants start from, and the parts that hold them."""

from __future__ import annotations

import dataclasses
import logging

import torch
from torch import Tensor

from fusionbench_lite.adaptation.engine import memory, placement
from fusionbench_lite.adaptation.engine.descent import Learner, descend
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.parts import Factors, Part, Vectors
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import NULL_RATIO, decompose, numerical_rank, orthonormal_rows
from fusionbench_lite.weights.parallel import each
from fusionbench_lite.weights.ranks import Ranks

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Components:
    """Singular components of several matrices: u as rows [T, r, m], s [T, r] and v as rows [T, r, n]."""

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """The number of components of each matrix."""
        return self.values.shape[1]

    def leading(self, count: int) -> Components:
        """Return the first `count` components of each, in memory of their own."""
        return Components(*(tensor[:, :count].contiguous() for tensor in (self.left, self.values, self.right)))


class Masks:
    """Makes the parts with masks of one method, and remembers the masks that are not learned.

    `learn` is "both", "coefficients" or "masks", which decides what of the parametrisation is learned. Dense sums of the
    components that start active are kept where memory allows; on disk always, where they are fewer bytes to read than the
    components.
    """

    def __init__(self, experts: Experts, learn: str, temperature: float) -> None:
        dense = sum(experts.numel(name) * experts.work_dtype(name).itemsize for name in experts.names)
        place = placement.place()
        device = torch.device("cpu") if place == "cpu" else experts.device
        self.keep = learn == "coefficients" or place == "disk" or memory.allows(len(experts) * dense, device)
        if not self.keep:
            log.info("memory for %d task vectors is short: active components are multiplied at every step", len(experts))
        self.learn = learn
        self.temperature = temperature
        self.frozen: dict[str, Tensor] = {}

    def part(
        self, name: str, origin: Tensor, components: Components, active: int, *, rank: int | None = None,
        deltas: Tensor | None = None,
    ) -> Factors | Vectors:
        """Return the part of one matrix (see `Factors`): constant vectors where masks are not learned."""
        factors = Factors(
            origin, components.left, components.values, components.right, active, temperature=self.temperature,
            deltas=deltas, rank=rank, learn=self.learn != "coefficients", keep=self.keep,
        )
        if self.learn != "coefficients":
            return factors
        self.frozen[name] = factors.mask()
        return factors.frozen()

    def learner(
        self, experts: Experts, parts: dict[str, Part], initial: float, *, lr: float, objective: str, common: bool = False
    ) -> Learner:
        """Return the learner of λ and masks."""
        result = Parametrisation(experts, parts, initial, lr=lr, masks=self.frozen, common=common)
        result.coefficients.requires_grad_(self.learn != "masks")
        return descend(result, objective)


def decomposed(experts: Experts, name: str, deltas: Tensor, active: int, used: int, ranks: Ranks, *, learned: bool) -> Components:
    """Return all components of the matrices [T, m, n], singular values descending.

    `ranks` is told where equal values make the first `active` arbitrary, or all where masks are `learned`, and where fewer
    than `used` are more than noise.
    """
    tasks, height, width = deltas.shape
    rank = min(height, width)
    components = Components(*(deltas.new_empty((tasks, *rest)) for rest in ((rank, height), (rank,), (rank, width))))

    def fill(number: int) -> None:
        what = f"{name!r} of expert {experts.tasks[number]!r}"
        left, values, right = decompose(deltas[number], what)
        noise = experts.rounding(name)
        ranks.note(name, what, numerical_rank(values, noise), used)
        ranks.cut(what, active, height + width, noise)(values.square())
        if learned:
            ranks.basis(what, numerical_rank(values, noise), height + width)(values.square())
        components.left[number], components.values[number], components.right[number] = left.T, values, right

    each(fill, range(tasks))
    return components


def whiten_leading(components: Components, active: int, name: str) -> None:
    """Replace the leading components of all tasks by their polar factor, in place: rows u and v become orthonormal
    across tasks. Components that are numerically zero have arbitrary vectors and take no part, as in static TSV-M."""
    values = components.values
    present = (values > NULL_RATIO**0.5 * values[:, :1])[:, :active, None]
    for rows, side in ((components.left, "left"), (components.right, "right")):
        rows[:, :active] *= present
        leading = rows[:, :active].reshape(-1, rows.shape[2]).double()
        if len(leading):
            whitened = orthonormal_rows(leading, f"the {side} singular vectors of {name!r}", rows.dtype)
            rows[:, :active] = whitened.reshape(len(rows), active, -1).to(rows.dtype)
