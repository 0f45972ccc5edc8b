"""Merging methods straight from their formulas, as released code computes them: yardsticks for speed and for results.

Every function takes the pretrained weights and the experts as state dicts and returns the merged state dict. Arithmetic
is in the dtype of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]
Experts = Mapping[str, State]


def reading(base: State, experts: Experts) -> State:
    """Read every input once and add it up: no merge can be faster than its inputs arrive."""
    total = torch.zeros(())
    for weights in (base, *experts.values()):
        for tensor in weights.values():
            total += tensor.sum()
    return {"sum": total}


def task_arithmetic(base: State, experts: Experts, scaling: float = 0.3) -> State:
    """θ0 + λ Σ_t τ_t."""
    return {name: tensor + scaling * sum(vectors(base, experts, name)) for name, tensor in base.items()}


def ties_merging(base: State, experts: Experts, keep: float = 0.2, scaling: float = 0.3) -> State:
    """One vector per expert: trimmed at its k-th smallest magnitude, signs elected, agreeing entries summed."""
    flat = []
    for weights in experts.values():
        vector = torch.cat([(weights[name] - tensor).reshape(-1) for name, tensor in base.items()])
        threshold = kth_magnitude(vector, keep)
        flat.append(vector * (vector.abs() >= threshold))
    sign = torch.sign(sum(flat))
    sign[sign == 0] = torch.sign(sign.sum())
    merged = sum(torch.where(torch.where(sign > 0, vector > 0, vector < 0), vector, 0) for vector in flat)
    parts = torch.split(merged, [tensor.numel() for tensor in base.values()])
    return {
        name: tensor + scaling * part.reshape(tensor.shape) for (name, tensor), part in zip(base.items(), parts, strict=True)
    }


def kth_magnitude(vector: Tensor, keep: float) -> Tensor:
    """Return the magnitude from which the largest `keep` of the entries begin."""
    return torch.kthvalue(vector.abs(), len(vector) - int(keep * len(vector))).values


def tsv_m(base: State, experts: Experts) -> State:
    """θ0 + U⊥ Σ̄ V⊥ᵀ from T singular value decompositions and two polar factors per matrix; the mean of τ_t else."""
    merged = {}
    for name, tensor in base.items():
        found = vectors(base, experts, name)
        if tensor.dim() != 2:
            merged[name] = tensor + sum(found) / len(found)
            continue
        rank = min(tensor.shape) // len(found)
        parts = [truncated(vector, rank) for vector in found]
        left, values, right = (torch.cat(part, axis) for part, axis in zip(zip(*parts, strict=True), (1, 0, 0), strict=True))
        merged[name] = tensor + (polar(left) * values) @ polar(right)
    return merged


def cart(base: State, experts: Experts, scaling: float = 2.3, rank_ratio: float = 0.16) -> State:
    """θ̄ + λ Σ_t SVD_k(θ_t - θ̄) from T singular value decompositions per matrix; θ̄ else."""
    merged = {}
    for name, tensor in base.items():
        mean = sum(weights[name] for weights in experts.values()) / len(experts)
        if tensor.dim() != 2:
            merged[name] = mean
            continue
        total = torch.zeros_like(mean)
        for weights in experts.values():
            left, values, right = truncated(weights[name] - mean, max(1, int(rank_ratio * min(mean.shape))))
            total += (left * values) @ right
        merged[name] = mean + scaling * total
    return merged


def iso_c(base: State, experts: Experts) -> State:
    """θ0 + σ̄ U Vᵀ of the sum of all tasks' singular components: T + 1 singular value decompositions per matrix."""
    return _isotropic(base, experts, decomposed=True)


def iso_c_of_sum(base: State, experts: Experts) -> State:
    """The same from one singular value decomposition per matrix, that of the summed task vectors."""
    return _isotropic(base, experts, decomposed=False)


def _isotropic(base: State, experts: Experts, *, decomposed: bool) -> State:
    merged = {}
    for name, tensor in base.items():
        found = vectors(base, experts, name)
        if tensor.dim() != 2:
            merged[name] = tensor + sum(found) / len(found)
            continue
        if decomposed:
            found = [(left * values) @ right for left, values, right in (truncated(vector) for vector in found)]
        left, values, right = truncated(sum(found))
        merged[name] = tensor + values.mean() * (left @ right)
    return merged


def vectors(base: State, experts: Experts, name: str) -> list[Tensor]:
    """Return the task vectors τ_t of one tensor."""
    return [weights[name] - base[name] for weights in experts.values()]


def truncated(matrix: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading components of the singular value decomposition, U [m, k], s [k] and Vᵀ [k, n]."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


def polar(matrix: Tensor) -> Tensor:
    """Return U Vᵀ, the nearest matrix with orthonormal rows or columns."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def doge_ta(
    base: State, experts: Experts, eta: float = 0.07, keep: float = 0.3, steps: int = 400, lr: float = 1e-4, divisor: int = 6
) -> State:
    """θ0 + Σ_t λ_t M_t ⊙ (τ_t + Δ) for matrices, with Δ from autograd and Adam; θ0 else."""
    names = [name for name, tensor in base.items() if tensor.dim() == 2]
    found = {name: torch.stack(vectors(base, experts, name)) for name in names}
    thresholds = [
        kth_magnitude(torch.cat([found[name][task].reshape(-1) for name in names]), keep) for task in range(len(experts))
    ]
    merged = dict(base)
    for name in names:
        scales = torch.stack([eta / torch.linalg.vector_norm(vector) for vector in found[name]])
        change = doge_modification(found[name], scales, shared_projector(found[name], divisor), steps, lr)
        kept = zip(scales, found[name], thresholds, strict=True)
        merged[name] = base[name] + sum(scale * ((vector.abs() >= least) * (vector + change)) for scale, vector, least in kept)
    return merged


def shared_projector(found: Tensor, divisor: int = 6) -> Tensor:
    """Return P = Q Qᵀ [m, m] on the shared space of task vectors [T, m, n]."""
    size = min(found.shape[1:])
    joint = torch.cat([truncated(vector, size // len(found))[0] for vector in found], dim=1)
    space = truncated(joint, size // divisor)[0]
    return space @ space.T


def doge_modification(found: Tensor, scales: Tensor, projector: Tensor, steps: int, lr: float) -> Tensor:
    """Return Δ [m, n] for task vectors [T, m, n], λ [T] and P [m, m]: autograd of the loss, G - P G, Adam."""
    change = torch.zeros_like(found[0], requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(doge_loss(found, scales, change))
        change.grad.sub_(projector @ change.grad)
        optimizer.step()
    return change.detach()


def doge_loss(found: Tensor, scales: Tensor, change: Tensor) -> Tensor:
    """Return Σ_j Σ_i ⟨τ_j[i], τ_j[i] - Σ_t λ_t (τ_t + Δ)[i]⟩² over rows i, term by term as the released code adds it up."""
    scaled = (found * scales.view(-1, 1, 1)).sum(0)
    moved = (change.unsqueeze(0) * scales.view(-1, 1, 1)).sum(0)
    total = torch.zeros((), dtype=change.dtype)
    for vector in found:
        total = total + (vector * vector - vector * scaled - vector * moved).sum(1).square().sum()
    return total
