"""doGe TA: adaptive projective gradient descent on one modification of all task vectors (Wei et al. 2025).

The definition is that of the released code, which agrees with the paper's appendix; `loss="matrix"` is Eq. 5 as printed.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.errors import MergeError, MergeWarning
from fusionbench_lite.fields import choice, integer, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.doge_gradient import Gradient
from fusionbench_lite.methods.ties import Vectors, trim_thresholds
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import NULL_RATIO, eigenbasis
from fusionbench_lite.weights.matrices import MATRIX_POLICIES, is_factorised
from fusionbench_lite.weights.parallel import in_turns
from fusionbench_lite.weights.ranks import RANKS, Ranks, task_components

if TYPE_CHECKING:
    from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8
"""Of Adam."""


@dataclasses.dataclass(frozen=True)
class DogeTa:
    """The settings of doGe TA and of its ablations.

    `eta`: η, the norm of every scaled task vector of a matrix; 0.07 for CLIP, 0.15 for Flan-T5. `keep`: part of each
    task vector that is trimmed to, over all matrices. `steps`, `lr`: of Adam; 0 steps are "no optimisation".
    `subspace_divisor`: the shared space has ⌊p / divisor⌋ directions. `matrices`: which tensors are merged at all.
    `rank`: "numerical" takes no singular vectors beyond a task vector's numerical rank, which "fixed" fills with noise.
    `coefficients`: λ_t = η / ‖τ_t‖ per matrix ("layer"), with the root mean square over matrices ("task", our reading of
    an ablation the paper does not define), or one for all ("uniform"). `scaling`: λ_t where uniform. `projection`: of
    the gradient, away from the shared space ("orthogonal"), not at all ("none"), or "onto" it. `loss`: inner products per
    row, the released code, or over the whole matrix, the paper.
    """

    eta: float = real(0.07, low=0, open_low=True)
    keep: float = real(0.3, low=0, high=1, open_low=True)
    steps: int = integer(400, low=0)
    lr: float = real(1e-4, low=0, open_low=True)
    subspace_divisor: int = integer(6, low=1)
    matrices: str = choice("encoder_linear", MATRIX_POLICIES)
    rank: str = choice("fixed", RANKS)
    coefficients: str = choice("layer", ("layer", "task", "uniform"))
    scaling: float = real(0.3)
    projection: str = choice("orthogonal", ("orthogonal", "none", "onto"))
    loss: str = choice("row", ("row", "matrix"))


@method("doge_ta", DogeTa, label="doGe TA")
def doge_ta(experts: Experts, h: DogeTa) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + Σ_t λ_t M_t ⊙ (τ_t + Δ) for the selected matrices, θ0 else.

    Δ minimises Σ_j Σ_i ⟨τ_j[i], τ_j[i] - Σ_t λ_t (τ_t + Δ)[i]⟩² over rows i by Adam, its gradient kept out of the space
    that the leading left singular vectors of the tasks share; M_t keeps the largest entries of τ_t. Cost:
    4(T + k)mn operations per step and matrix.
    """
    selected = [name for name in experts.names if is_factorised(name, experts.shape(name), h.matrices)]
    if not selected:
        warnings.warn(nothing_selected("doge_ta", experts, h.matrices), MergeWarning, stacklevel=2)
    ranks = Ranks("doge_ta")
    modified = Modified(experts, selected, h, ranks)
    for name in selected:
        if name not in experts.finished:
            yield name, _merged(experts, name, modified)
    ranks.warn()


def nothing_selected(method: str, experts: Experts, policy: str) -> str:
    """Return what a user is told where no tensor is merged."""
    return (
        f"{method} merges nothing: matrices={policy!r} selects none of the {len(experts.names)} tensors; choose another of "
        f"{', '.join(MATRIX_POLICIES)}"
    )


def _merged(experts: Experts, name: str, modified: Modified) -> Tensor:
    """Return one merged matrix; the task vectors of a matrix are in memory for as long as this takes."""
    vectors, base = modified.vectors(name), experts.base(name)
    merged = torch.zeros_like(base)
    for number, scale in enumerate(modified.scales[name].tolist()):
        merged.add_(vectors[:, number], alpha=scale)
    return merged.add_(base)


class Modified:
    """The modified task vectors M_t ⊙ (τ_t + Δ) of some matrices and their λ [T], `scales`.

    `per_task` gives every task a Δ_t of its own.
    """

    def __init__(
        self, experts: Experts, selected: list[str], h: DogeTa, ranks: Ranks, *, per_task: bool = False
    ) -> None:
        self.experts, self.h, self.ranks = experts, h, ranks
        self.optimise = modifications if per_task else modification
        self.thresholds = trim_thresholds(Vectors.of(experts, selected), h.keep)
        self.scales = _coefficients(experts, selected, h)

    def vectors(self, name: str) -> Tensor:
        """Return those of one matrix, [m, T, n]; raises MergeError where Δ overflows."""
        experts, h, base, space = self.experts, self.h, self.experts.base(name), None
        if h.steps and h.projection != "none":
            space = shared_space(experts, name, h, self.ranks).to(base)
        vectors = torch.empty((base.shape[0], len(experts), base.shape[1]), dtype=base.dtype, device=base.device)
        for number, task in enumerate(experts.tasks):
            vectors[:, number] = experts.task_vector(task, name)
        change = torch.zeros_like(base)
        if h.steps:
            change = self.optimise(vectors, self.scales[name].to(base), space, h)
            if not bool(torch.isfinite(change).all()):
                raise MergeError(
                    f"{self.ranks.method}: {name!r} overflowed {base.dtype}: are its task vectors meant to be so large?"
                )
        for number, row in enumerate(change.expand(len(experts), *base.shape)):
            vector = vectors[:, number]
            kept = vector.abs() >= self.thresholds.reshape(-1)[number if self.thresholds.dim() else 0].to(base.device)
            vector.add_(row).mul_(kept)
        return vectors


def _coefficients(experts: Experts, selected: list[str], h: DogeTa) -> dict[str, Tensor]:
    """Return λ_t [T] per matrix in float64; a task vector of norm 0 has 0 (doGe, Eq. 8)."""
    if h.coefficients == "uniform":
        return {name: torch.full((len(experts),), h.scaling, dtype=torch.float64) for name in selected}
    squares = {name: torch.zeros(len(experts), dtype=torch.float64) for name in selected}
    for name, total in squares.items():
        for _, block in experts.blocks(name):
            total += torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).square().cpu()
    if h.coefficients == "task" and selected:
        mean = torch.stack(list(squares.values())).mean(0)  # [T]
        squares = dict.fromkeys(selected, mean)
    return {name: torch.where(total > 0, h.eta / total.clamp_min(1e-300).sqrt(), 0.0) for name, total in squares.items()}


def shared_space(experts: Experts, name: str, h: DogeTa, ranks: Ranks) -> Tensor:
    """Return Q [m, k] in float64: the top eigenvectors of Σ_t U_t U_tᵀ, U_t the ⌊p/T⌋ leading left singular vectors of τ_t.

    From the Gram matrix of [U_1 … U_T], which has fewer columns than the sum has rows. Every direction votes equally.
    """
    size = min(experts.shape(name))
    read = functools.partial(task_components, experts, name, size // len(experts), h.rank, ranks)
    joint = torch.cat([left for left, _, _ in in_turns(read, experts.tasks)], dim=1)  # [m, T·⌊p/T⌋]
    weights, basis = eigenbasis(joint.T @ joint, f"the singular vectors of {name!r}")
    rank = min(size // h.subspace_divisor, int((weights > NULL_RATIO * weights[:1]).sum()))
    ranks.cut(f"the shared space of {name!r}", rank, sum(joint.shape))(weights)
    return (joint @ basis[:, :rank]) * weights[:rank].rsqrt()


def modification(vectors: Tensor, scales: Tensor, space: Tensor | None, h: DogeTa) -> Tensor:
    """Return Δ [m, n] after Adam from 0, for task vectors [m, T, n] (rows first), λ [T] and the shared space Q [m, k]."""
    height, _, width = vectors.shape
    change = torch.zeros((height, width), dtype=vectors.dtype, device=vectors.device, requires_grad=True)
    descent = Gradient(vectors, scales, float(scales.sum()), space, h.projection, whole=h.loss == "matrix")
    optimizer = torch.optim.Adam([change], lr=h.lr, betas=BETAS, eps=EPS, fused=True)
    gradient = torch.empty_like(change, requires_grad=False)
    with torch.no_grad():
        for _ in range(h.steps):
            descent.write(change, gradient)
            change.grad = gradient
            optimizer.step()
    return change.detach()


def modifications(vectors: Tensor, scales: Tensor, space: Tensor | None, h: DogeTa) -> Tensor:
    """Return Δ_t of every task, [T, m, n], after Adam from 0 in the loss of `modification` with Σ_t λ_t Δ_t for ΛΔ.

    Gradients of the tasks are λ_t G with one G for all. Adam's moments of λ_t G are λ_t and λ_t² times those of G, so
    these are kept once: dividing by λ_t, tasks differ by ε / λ_t alone, and only where G is as small as that.
    """
    deltas = vectors.new_zeros((vectors.shape[1], len(vectors), vectors.shape[2]))
    combined, gradient, first, second = (torch.zeros_like(deltas[0]) for _ in range(4))
    descent = Gradient(vectors, scales, 1.0, space, h.projection, whole=h.loss == "matrix")
    for step in range(1, h.steps + 1):
        descent.write(combined, gradient)
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        size, combined = (second / (1 - BETAS[1] ** step)).sqrt_(), combined.zero_()
        for delta, scale in zip(deltas, scales.tolist(), strict=True):
            if scale:
                delta.addcdiv_(first, size + EPS / scale, value=-h.lr / (1 - BETAS[0] ** step))
                combined.add_(delta, alpha=scale)
    return deltas
