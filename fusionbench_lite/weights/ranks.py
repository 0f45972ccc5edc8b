"""Rank-deficient task vectors and equal singular values: which methods they make irreproducible, and the stable way out
(docs/decisions.md, D16)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeWarning
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import NULL_RATIO, Components, Watch, low_rank, numerical_rank, top_singular
from fusionbench_lite.weights.rounding import rounding

if TYPE_CHECKING:
    from torch import Tensor

RANKS = ("fixed", "numerical")
"""How many components a method takes: the number of the released code, or no more than the matrix numerically has."""


class RankWarning(MergeWarning):
    """A result depends on singular vectors of rounding noise."""


class TieWarning(MergeWarning):
    """A result depends on which of several equal singular values are kept."""


class Ranks:
    """What a merge saw of numerical ranks and of equal singular values; warns once of each, at its end.

    `stable` says what a user can do about a deficient rank.
    """

    def __init__(self, method: str, stable: str = 'rank="numerical" is stable') -> None:
        self.method = method
        self.stable = stable
        self.lowest: tuple[int, str, int] | None = None
        self.deficient: set[str] = set()
        self.seen: set[str] = set()
        self.ties: set[tuple[str, int]] = set()
        self.bases: set[tuple[str, int]] = set()

    def note(self, name: str, what: str, rank: int, wanted: int) -> None:
        """Take note of a matrix that has `rank` components where `wanted` are taken; a zero matrix is no concern."""
        self.seen.add(name)
        if 0 < rank < wanted:
            self.deficient.add(name)
            self.lowest = min(self.lowest or (rank, what, wanted), (rank, what, wanted))

    def cut(self, what: str, rank: int, operations: int, noise: float = 0.0) -> Watch:
        """Return what looks at eigenvalues of a Gram matrix, largest first, of which `rank` are kept: is the next one equal?

        `operations` is the number of roundings behind the Gram matrix, whose eigenvalues are off by these in its trace
        (Weyl, and ‖|A|ᵀ|A|‖_F ≤ ‖A‖_F²). Singular values of the null space, or of the checkpoint's `noise`, are no concern.
        """

        def watch(weights: Tensor) -> None:
            if not 0 < rank < len(weights) or float(weights[rank - 1]) <= noise**2:
                return
            if bool(_equal_to_the_next(weights, operations)[rank - 1]):
                self.ties.add((what, rank))

        return watch

    def basis(self, what: str, rank: int, operations: int) -> Watch:
        """Return what looks whether any of the `rank` kept directions can be turned into each other."""

        def watch(weights: Tensor) -> None:
            equal = _equal_to_the_next(weights, operations)[: max(rank - 1, 0)].nonzero()
            if len(equal):
                self.bases.add((what, int(equal[0]) + 1))

        return watch

    def warn(self) -> None:
        """Warn where some matrix was deficient, and where equal singular values were parted."""
        if self.lowest is not None:
            rank, what, wanted = self.lowest
            warnings.warn(
                f"{self.method} takes {wanted} singular components of {what}, whose numerical rank is {rank} "
                f"({len(self.deficient)} of {len(self.seen)} matrices are deficient): the others are rounding noise, and "
                f"the result differs between machines; {self.stable}",
                RankWarning, stacklevel=2,
            )
        if self.ties:
            what, rank = min(self.ties)
            warnings.warn(
                f"{self.method} keeps {rank} singular components of {what}, but singular values {rank} and {rank + 1} are equal "
                f"({len(self.ties)} such cuts): which is kept is arbitrary, and the result differs between machines; keep "
                "more or fewer",
                TieWarning, stacklevel=2,
            )
        if self.bases:
            what, rank = min(self.bases)
            warnings.warn(
                f"{self.method} reads {what} in the basis of its singular vectors, but singular values {rank} and {rank + 1} are "
                f"equal ({len(self.bases)} such matrices): the basis is arbitrary, and the result differs between machines",
                TieWarning, stacklevel=2,
            )


def _equal_to_the_next(weights: Tensor, operations: int) -> Tensor:
    """Return which eigenvalues [n - 1] of a Gram matrix float64 cannot tell from the next smaller one; bool."""
    limit = 2 * rounding(operations, weights.dtype) * weights.clamp_min(0).sum()
    return (weights[:-1] - weights[1:] <= limit) & (weights[:-1] > NULL_RATIO * weights[:1])


def task_components(experts: Experts, name: str, wanted: int, mode: str, ranks: Ranks, task: str) -> Components:
    """Return the leading components of one task vector in float64: `wanted`, or no more than its numerical rank.

    `mode` is one of RANKS. With "numerical" a low-rank adapter is decomposed by its factors.
    """
    what = f"{name!r} of expert {task!r}"
    factors = experts.factors(task, name) if mode == "numerical" else None
    if factors is not None:
        left, values, right = low_rank(*factors)
        rank = numerical_rank(values)
        ranks.cut(what, min(wanted, rank), sum(experts.shape(name)))(values.square())
    else:
        noise = experts.rounding(name)
        watch = ranks.cut(what, wanted, sum(experts.shape(name)), noise)
        left, values, right = top_singular(experts.task_vector(task, name), wanted, what, watch)
        rank = numerical_rank(values, noise)
    kept = min(wanted, rank)
    if mode == "fixed":
        ranks.note(name, what, kept, wanted)
        kept = wanted
    return left[:, :kept], values[:kept], right[:kept]
