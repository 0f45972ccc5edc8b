"""Rank-deficient task vectors: which methods they make irreproducible, and the stable way out (specification §21.6)."""

from __future__ import annotations

import warnings

from fusionbench_lite.errors import MergeWarning
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import Components, low_rank, numerical_rank, top_singular

RANKS = ("fixed", "numerical")
"""How many components a method takes: the number of the released code, or no more than the matrix numerically has."""


class RankWarning(MergeWarning):
    """A result depends on singular vectors of rounding noise."""


class Ranks:
    """What a merge saw of the numerical ranks; warns once, at its end."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.lowest: tuple[int, str, int] | None = None
        self.deficient: set[str] = set()
        self.seen: set[str] = set()

    def note(self, name: str, what: str, rank: int, wanted: int) -> None:
        """Take note of a matrix that has `rank` components where `wanted` are taken; a zero matrix is no concern."""
        self.seen.add(name)
        if 0 < rank < wanted:
            self.deficient.add(name)
            self.lowest = min(self.lowest or (rank, what, wanted), (rank, what, wanted))

    def warn(self) -> None:
        """Warn where some matrix was deficient."""
        if self.lowest is not None:
            rank, what, wanted = self.lowest
            warnings.warn(
                f"{self.method} takes {wanted} singular components of {what}, whose numerical rank is {rank} "
                f"({len(self.deficient)} of {len(self.seen)} matrices are deficient): the others are rounding noise, and "
                'the result differs between machines; rank="numerical" is stable',
                RankWarning, stacklevel=2,
            )


def task_components(experts: Experts, name: str, wanted: int, mode: str, ranks: Ranks, task: str) -> Components:
    """Return the leading components of one task vector in float64: `wanted`, or no more than its numerical rank.

    `mode` is one of RANKS. With "numerical" a low-rank adapter is decomposed by its factors.
    """
    what = f"{name!r} of expert {task!r}"
    factors = experts.factors(task, name) if mode == "numerical" else None
    if factors is not None:
        left, values, right = low_rank(*factors)
        rank = numerical_rank(values)
    else:
        left, values, right = top_singular(experts.task_vector(task, name), wanted, what)
        rank = numerical_rank(values, experts.rounding(name))
    kept = min(wanted, rank)
    if mode == "fixed":
        ranks.note(name, what, kept, wanted)
        kept = wanted
    return left[:, :kept], values[:kept], right[:kept]
