"""AWD TA: one redundant vector taken out of all task vectors, which disentangles them (Xiong et al. 2024).

A reconstruction: no code was released, and optimiser and granularity are not in the text that could be read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusionbench_lite.fields import choice, integer, real
from fusionbench_lite.lazy import torch
from fusionbench_lite.registry import method
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.rounding import Still, rounding

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class AwdTa:
    """The settings of AWD TA, a reconstruction.

    `alpha`: weight of the norm of the redundant vector δ. `lr`, `steps`: of its descent from δ = 0. `scaling`: λ.
    `group`: cosines per tensor or over the whole model ("global"). `optimizer`: gradient descent ("gd"), under which δ
    stays a combination of the task vectors, or "adam". The gradient grows as 1/‖τ‖: the step size overshoots where task
    vectors are much smaller than 0.1, and the result follows rounding then.
    """

    alpha: float = real(0.1, low=0)
    lr: float = real(0.01, low=0, open_low=True)
    steps: int = integer(300, low=0)
    scaling: float = real(0.3)
    group: str = choice("tensor", ("tensor", "global"))
    optimizer: str = choice("gd", ("gd", "adam"))


@method("awd_ta", AwdTa, label="AWD TA")
def awd_ta(experts: Experts, h: AwdTa) -> Iterator[tuple[str, Tensor]]:
    """θ = θ0 + λ Σ_t (τ_t - δ), δ minimising the mean |cos(τ_i - δ, τ_j - δ)| over pairs plus α‖δ‖ (AWD, a reconstruction).

    The gradient of ‖δ‖ at δ = 0 counts as 0, and so do cosines and gradients that are no more than rounding (orthogonal and
    parallel task vectors, and those of one entry). Cost: two passes for gradient descent, which needs only the T × T inner
    products; O(Td) per step for Adam, with δ and its moments in memory.
    """
    for names, redundant in redundant_vectors(experts, h):
        if isinstance(redundant, dict):
            for name, delta in redundant.items():
                shift = h.scaling * len(experts) * delta.reshape(experts.shape(name))
                merged = experts.combination(name, [h.scaling] * len(experts))
                yield name, merged - shift.to(merged)
            continue
        weights = (h.scaling * (1 - len(experts) * redundant)).tolist()
        for name in names:
            yield name, experts.combination(name, weights)


def redundant_vectors(experts: Experts, h: AwdTa) -> Iterator[tuple[list[str], Tensor | dict[str, Tensor]]]:
    """Yield the tensors of every group and their δ in float64: c [T] with δ = Σ_t c_t τ_t after gradient descent, or δ by
    tensor, flattened, after Adam, which changes it entry by entry."""
    groups = [experts.names] if h.group == "global" else [[name] for name in experts.names]
    for names in groups:
        if sum(experts.numel(name) for name in names) == 1:  # cosines are 1 or -1, whatever δ: no gradient but rounding
            yield names, torch.zeros(len(experts), dtype=torch.float64)
            continue
        nothing = torch.zeros((len(experts), len(experts)), dtype=torch.float64)
        products = sum((experts.inner_products(name) for name in names), nothing)
        if h.optimizer == "adam" and len(experts) > 1:
            yield names, _by_adam(experts, names, products, h)
        else:
            yield names, _descend(products, sum(experts.numel(name) for name in names), h)


@dataclasses.dataclass
class _Pairs:
    """The inner products of τ_i - δ [T, T] for δ as it moves, from those of the task vectors, and what they are made of.

    `size`: the number of elements, over which products were summed up.
    """

    products: Tensor
    size: int

    def __post_init__(self) -> None:
        self.norms = self.products.diagonal().clamp_min(0).sqrt()
        self.rounding = rounding(self.size + 4 * len(self.products) + 8, torch.float64)

    def pull(self, inside: Tensor, square: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Return w [T] with ∂L_O/∂δ = -Σ_i w_i (τ_i - δ), and its rounding, [T]; what is below that is 0.

        L_O = Σ_{i≠j} |M_ij| / (√M_ii √M_jj) / (T(T - 1)) with the inner products M of the τ_i - δ; a vector of norm 0 has no
        cosine and no gradient. `inside` [T] is ⟨τ_i, δ⟩, `square` ‖δ‖² and `reach` at least ‖δ‖.
        """
        count, lengths = len(self.products), self.norms + reach
        remaining = self.products - inside.unsqueeze(0) - inside.unsqueeze(1) + square  # [T, T]
        # M_ij is made of terms that sum up to (‖τ_i‖ + ‖δ‖)(‖τ_j‖ + ‖δ‖) at most.
        remaining = torch.where(remaining.abs() <= self.rounding * torch.outer(lengths, lengths), 0.0, remaining)
        norms = remaining.diagonal().clamp_min(0).sqrt()
        lengths_of_pairs = norms.unsqueeze(0) * norms.unsqueeze(1)  # [T, T]
        valid = (lengths_of_pairs > 0) & ~torch.eye(count, dtype=torch.bool)
        safe = torch.where(valid, lengths_of_pairs, 1.0)
        signs = torch.where(valid, remaining.sign() / safe, 0.0)
        cosines = torch.where(valid, remaining.abs() / safe, 0.0)
        squares = torch.where(norms > 0, norms.square(), 1.0)
        by_products = (signs + torch.diag(-cosines.sum(1) / squares)) / (count * (count - 1))
        pull = 2 * by_products.sum(0)
        # With a_i = (‖τ_i‖ + ‖δ‖) / ‖τ_i - δ‖ and the rounding ρ, squares are off by ρ a_i² of themselves, 1 / √(M_ii M_jj) by
        # half of that of both, and cosines by ρ (a_i² + a_j²) at most.
        losses = (lengths.square() / squares).unsqueeze(0) + (lengths.square() / squares).unsqueeze(1)
        made_of = torch.where(valid, losses * (1 / safe + 2 / squares.unsqueeze(0)), 0.0).sum(0)  # [T]
        noise = 2 * self.rounding / (count * (count - 1)) * made_of
        return torch.where(pull.abs() <= noise, 0.0, pull), noise


def _descend(products: Tensor, size: int, h: AwdTa) -> Tensor:
    """Return c [T] with δ = Σ_t c_t τ_t after gradient descent, from ⟨τ_i, τ_j⟩ [T, T] of vectors of this size."""
    shares, pairs = torch.zeros(len(products), dtype=torch.float64), _Pairs(products, size)
    for _ in range(h.steps if len(products) > 1 else 0):
        inside = products @ shares
        square, reach = shares @ inside, shares.abs() @ pairs.norms
        pull, _ = pairs.pull(inside, square, reach)
        norm = square.clamp_min(0).sqrt() if square > pairs.rounding * reach.square() else 0.0
        step = pull.sum() * shares - pull + (h.alpha * shares / norm if norm > 0 else 0.0)
        shares = shares - h.lr * step
    return shares


def _by_adam(experts: Experts, names: list[str], products: Tensor, h: AwdTa) -> dict[str, Tensor]:
    change = {name: torch.zeros(experts.numel(name), dtype=torch.float64, requires_grad=True) for name in names}
    optimizer = torch.optim.Adam(list(change.values()), lr=h.lr)
    pairs, still = _Pairs(products, sum(experts.numel(name) for name in names)), {name: Still() for name in names}
    for _ in range(h.steps):
        with torch.no_grad():
            inside, square = torch.zeros(len(experts), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
            for name, delta in change.items():
                square += delta @ delta
                for part, block in experts.blocks(name):
                    inside += block.cpu().double() @ delta[part]
            pull, noise = pairs.pull(inside, square, square.sqrt())
            for name, delta in change.items():
                delta.grad = pull.sum() * delta + (h.alpha * delta / square.sqrt() if square > 0 else 0.0)
                for part, block in experts.blocks(name):
                    delta.grad[part] -= pull @ block.cpu().double()
                still[name].settle(delta.grad, functools.partial(_adam_bound, experts, name, pull, noise, delta))
        optimizer.step()
    return {name: delta.detach() for name, delta in change.items()}


def _adam_bound(experts: Experts, name: str, pull: Tensor, noise: Tensor, delta: Tensor) -> Tensor:
    """Return what rounding can make of every entry of Adam's gradient, [n]: sums over tasks, with `noise` in their weights."""
    part = rounding(2 * len(pull) + 4, torch.float64)
    weights = part * pull.abs() + noise
    limit = weights.sum() * delta.abs()
    for where, block in experts.blocks(name):
        limit[where] += weights @ block.cpu().double().abs()
    return limit
