"""Isotropic merging: the summed task vectors with a flat spectrum, Iso-C, and with a share of directions for every
task, Iso-CTS (Marczak et al. 2025)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, real
from fusionbench_lite.registry import SVD, method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import Components, decompose, numerical_rank, orthonormalise_, product, top_singular
from fusionbench_lite.weights.matrices import MATRIX_POLICIES, is_factorised
from fusionbench_lite.weights.parallel import each
from fusionbench_lite.weights.ranks import RANKS, Ranks

if TYPE_CHECKING:
    from torch import Tensor


STABLE = 'iso_c and tsv_m with rank="numerical" are stable'


@dataclasses.dataclass(frozen=True)
class IsoC:
    """The settings of Iso-C.

    `scaling`: α, for matrices and averaged tensors alike. `matrices`: which tensors are made isotropic. `rank`: with
    "numerical" only directions that the sum numerically has get the mean of their values; "fixed" gives it to noise too.
    """

    scaling: float = real(1.0)
    matrices: str = choice("all_2d", MATRIX_POLICIES)
    rank: str = choice("fixed", RANKS)


@dataclasses.dataclass(frozen=True)
class IsoCts:
    """`scaling`: α, for matrices and averaged tensors alike. `common_fraction`: f, the part of the directions that the
    sum keeps; the tasks share the rest. `matrices`: which tensors are made isotropic."""

    scaling: float = real(1.0)
    common_fraction: float = real(0.8, low=0, high=1)
    matrices: str = choice("all_2d", MATRIX_POLICIES)


@method("iso_c", IsoC, label="Iso-C", family=SVD)
def iso_c(experts: Experts, h: IsoC) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + α σ̄ U Vᵀ for matrices, with Σ_t τ_t = U Σ Vᵀ and σ̄ the mean of Σ; θ0 + α mean_t τ_t for the rest (Iso-C).

    Cost: one eigenproblem of side p per matrix.
    """
    ranks = Ranks("iso_c")
    for name in experts.pending:
        if not is_factorised(name, experts.shape(name), h.matrices):
            yield name, experts.combination(name, [h.scaling / len(experts)] * len(experts))
            continue
        what = f"the summed task vectors of {name!r}"
        left, values, right = decompose(_summed(experts, name), what)
        rank = numerical_rank(values, experts.rounding(name) * len(experts) ** 0.5)
        if h.rank == "numerical":
            left, values, right = left[:, :rank], values[:rank], right[:rank]
        else:
            ranks.note(name, what, rank, len(values))
        yield name, _flat(experts, name, h.scaling, left, values, right)
    ranks.warn()


@method("iso_cts", IsoCts, label="Iso-CTS", family=SVD)
def iso_cts(experts: Experts, h: IsoCts) -> Iterator[tuple[str, Tensor]]:
    """As iso_c with components of the sum (about fp) and of every task outside them (q = round((p - ⌊fp⌋)/T)), made
    orthogonal as in TSV-M: θ = θ0 + α σ̄ U⊥ V⊥ᵀ (Iso-CTS).

    Cost: 1 + T eigenproblems of side p, and two more, per matrix.
    """
    ranks = Ranks("iso_cts", STABLE)
    for name in experts.pending:
        if not is_factorised(name, experts.shape(name), h.matrices):
            yield name, experts.combination(name, [h.scaling / len(experts)] * len(experts))
            continue
        (left, values, right), _ = directions(experts, name, h.common_fraction, ranks)
        yield name, _flat(experts, name, h.scaling, left, values, right)
    ranks.warn()


def directions(experts: Experts, name: str, fraction: float, ranks: Ranks) -> tuple[Components, list[int]]:
    """Return U⊥ [m, p], the singular values [p] before they are made equal, and V⊥ᵀ [p, n], and the sizes of the blocks.

    The first block is that of the common directions, one for each task follows; some may be empty. `ranks` is told where
    they are noise or arbitrary.
    """
    common, per_task = shares(min(experts.shape(name)), len(experts), fraction)
    what = f"the summed task vectors of {name!r}"
    left, values, right = decompose(_summed(experts, name), what)
    noise = experts.rounding(name) * len(experts) ** 0.5
    ranks.note(name, what, numerical_rank(values, noise), common)
    ranks.cut(what, common, sum(experts.shape(name)), noise)(values.square())
    # What the sum has beyond its common directions makes room for those of the tasks.
    outside = functools.partial(_outside, experts, name, left[:, :common], (left, values, right), per_task, ranks)
    each(outside, range(len(experts)))
    orthonormalise_(left, right, repr(name), experts.work_dtype(name))
    return (left, values, right), [common] + [per_task] * len(experts)


def _outside(experts: Experts, name: str, space: Tensor, target: Components, count: int, ranks: Ranks, number: int) -> None:
    """Write the leading components of one task outside the common space behind those of the tasks before it."""
    if count:
        task, place = experts.tasks[number], slice(space.shape[1] + number * count, space.shape[1] + (number + 1) * count)
        vector = experts.task_vector(task, name).double()
        vector.addmm_(space, space.T @ vector, alpha=-1)
        what = f"{name!r} of expert {task!r} outside the common space"
        left, values, right = top_singular(vector, count, what, ranks.cut(what, count, sum(vector.shape), experts.rounding(name)))
        ranks.note(name, what, numerical_rank(values, experts.rounding(name)), count)
        target[0][:, place], target[1][place], target[2][place] = left, values, right


def shares(size: int, tasks: int, fraction: float) -> tuple[int, int]:
    """Return how many of `size` directions are common and how many every task gets.

    Python rounds halves to even, as the released code does; where ⌊fp⌋ is so small that nothing common would be left,
    the tasks get ⌊p/T⌋.
    """
    per_task = min(round((size - int(fraction * size)) / tasks), size // tasks)
    return size - per_task * tasks, per_task


def _summed(experts: Experts, name: str) -> Tensor:
    return experts.filled(name, ((part, block.sum(0)) for part, block in experts.blocks(name))).reshape(experts.shape(name))


def _flat(experts: Experts, name: str, scaling: float, left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """Return θ0 + α σ̄ U Vᵀ, σ̄ the mean of the values; none at all, or only zeros, leave θ0."""
    base = experts.base(name)
    if not values.any():
        return base.clone()
    return product(left, right, base.dtype).mul_(scaling * float(values.mean())).add_(base)
