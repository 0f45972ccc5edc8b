"""KnOTS: task vectors in the joint basis of their left singular vectors, merged there (Stoica et al. 2025)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import real
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.ties import Vectors, merged_vectors, ordered_sum
from fusionbench_lite.registry import SVD, method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import eigenbasis, product
from fusionbench_lite.weights.ranks import Ranks

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class KnotsTa:
    """`scaling`: λ. `cutoff`: singular values up to it are dropped; 1e-5 in the released code, 1e-4 in FusionBench."""

    scaling: float = real(0.6)
    cutoff: float = real(1e-5, low=0)


@dataclasses.dataclass(frozen=True)
class KnotsTies:
    """`scaling`: λ. `keep`: fraction of every task's representation that survives trimming, over all matrices.
    `cutoff`: singular values up to it are dropped; 1e-5 in the released code, 1e-4 in FusionBench."""

    scaling: float = real(0.6)
    keep: float = real(0.2, low=0, high=1, open_low=True)
    cutoff: float = real(1e-5, low=0)


@method("knots_ta", KnotsTa, label="KnOTS-TA", family=SVD)
def knots_ta(experts: Experts, h: KnotsTa) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ U Σ_t R_t for matrices, with [τ_1 … τ_T] = U S [V_1 … V_T]ᵀ and R_t = S V_tᵀ; θ0 else.

    Task arithmetic of the matrices, up to the cut-off. Cost: one eigenproblem of side m per matrix; of low-rank
    adapters, of side Tr.
    """
    for name in _matrices(experts):
        basis, rows = _aligned(experts, name, h.cutoff)
        if basis.shape[1]:
            yield name, _lifted(experts, name, h.scaling, basis, ordered_sum(rows))


@method("knots_ties", KnotsTies, label="KnOTS-TIES", family=SVD)
def knots_ties(experts: Experts, h: KnotsTies) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ U R_m for matrices, R_m the TIES merge (mean) of the representations R_t = Uᵀ τ_t; θ0 else.

    Trimming is global over all matrices that move. Cost: four or five eigenproblems of side m per matrix;
    of low-rank adapters, of side Tr.
    """
    sizes, ranks = {}, Ranks("knots_ties")
    for name in _matrices(experts):
        basis, rows = _aligned(experts, name, h.cutoff, ranks)
        if basis.shape[1]:
            sizes[name] = rows[0].numel()

    def blocks(name: str) -> Iterator[tuple[slice, Tensor]]:
        rows = _aligned(experts, name, h.cutoff)[1]
        yield slice(0, sizes[name]), rows.reshape(len(rows), -1)  # [T, r·n]

    vectors = dataclasses.replace(Vectors.of(experts, list(sizes)), sizes=sizes, blocks=blocks)
    for name, merged in merged_vectors(vectors, h.keep, "mean"):
        basis, _ = _aligned(experts, name, h.cutoff)
        yield name, _lifted(experts, name, h.scaling, basis, merged.reshape(basis.shape[1], -1))
    ranks.warn()


def _matrices(experts: Experts) -> list[str]:
    return [name for name in experts.names if len(experts.shape(name)) == 2]


def _aligned(experts: Experts, name: str, cutoff: float, ranks: Ranks | None = None) -> tuple[Tensor, Tensor]:
    """Return U [m, r] in float64 and the representations R [T, r, n] in the work dtype; r = 0 where no expert moved.

    `ranks` is told where equal values make U arbitrary.
    """
    factors = [experts.factors(task, name) for task in experts.tasks]
    rows, columns = experts.shape(name)
    space: Tensor | None = None
    if all(pair is not None for pair in factors):
        space, _ = torch.linalg.qr(torch.cat([pair[0].double() for pair in factors if pair is not None], dim=1))  # [m, Σ r]
    elif rows > len(experts) * columns:  # word embeddings: a Gram matrix of the side of the vocabulary would take gigabytes
        whole = [experts.task_vector(task, name).double() for task in experts.tasks]
        space, _ = torch.linalg.qr(torch.cat(whole, dim=1))  # [m, T n]

    def vector(number: int) -> Tensor:
        pair = factors[number]
        if space is None or pair is None:
            tau = experts.task_vector(experts.tasks[number], name).double()
            return tau if space is None else space.T @ tau
        return (space.T @ pair[0].double()) @ pair[1].double()

    side = rows if space is None else space.shape[1]
    gram = torch.zeros((side, side), dtype=torch.float64, device=experts.base(name).device)
    for number in range(len(experts)):
        row = vector(number)
        gram.addmm_(row, row.T)
    weights, basis = eigenbasis(gram, f"the joint task vectors of {name!r}")
    del gram
    # Of at most T n directions; a value the Gram matrix cannot tell from zero is none.
    rank = int((weights.sqrt() > max(cutoff, 1e-7 * float(weights[0]) ** 0.5)).sum()) if len(weights) else 0
    if ranks is not None:
        ranks.basis(f"the joint task vectors of {name!r}", rank, side + len(experts) * experts.shape(name)[1])(weights)
    basis = basis[:, :rank]
    aligned = torch.empty((len(experts), rank, columns), dtype=experts.work_dtype(name), device=basis.device)
    for number, target in enumerate(aligned):
        target.copy_(basis.T @ vector(number))
    return basis if space is None else space @ basis, aligned


def _lifted(experts: Experts, name: str, scaling: float, basis: Tensor, merged: Tensor) -> Tensor:
    base = experts.base(name)
    return product(basis, merged.double(), base.dtype).mul_(scaling).add_(base)
