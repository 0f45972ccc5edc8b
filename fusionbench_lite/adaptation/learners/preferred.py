"""Low-rank updates of matrices that depend on a preference among the tasks, and the distances to the experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.parts import Vectors
from fusionbench_lite.adaptation.engine.placement import forget


class Preferred(nn.Module):
    """W = θ0 + Σ_t λ_t τ_t + A C Bᵀ with C = Σ_t γ_t C_t (Pareto Merging, Chen and Kwok 2025).

    `left` A [m, r], `right` B [n, r] and `core` C_t [T, r, r] are learned; γ is `preference` [T]. With G = ∂L/∂W:

        ∂L/∂A = G B Cᵀ        ∂L/∂B = Gᵀ A C        ∂L/∂C_t = γ_t Aᵀ G B        ∂L/∂λ_t = ⟨G, τ_t⟩
    """

    origin: Tensor

    def __init__(self, origin: Tensor, deltas: Tensor, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.origin = origin.contiguous()
        self._vectors = Vectors(origin, deltas)
        self.deltas = self._vectors.flat
        tasks, rank = len(deltas), left.shape[1]
        self.left, self.right = nn.Parameter(left.to(origin)), nn.Parameter(right.to(origin))
        self.core = nn.Parameter(self.origin.new_zeros(tasks, rank, rank))
        self.preference = self.origin.new_full((tasks,), 1 / tasks)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A C [m, r] and B [n, r] for the present preference."""
        left, right, core = (parameter.detach().to(self.origin) for parameter in (self.left, self.right, self.core))
        return left @ torch.tensordot(self.preference, core, 1), right

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write the merged tensor into `out`."""
        self._vectors.combine(coefficients, out)
        left, right = self.factors()
        out.addmm_(left, right.T)

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return ∂L/∂λ [T] and set the gradients of A, B and C."""
        self.pull_back_factors(gradient)
        return self._vectors.pull_back(coefficients, gradient)

    def pull_back_factors(self, gradient: Tensor) -> None:
        """Set the gradients of A, B and C."""
        left, right = self.left.detach(), self.right.detach()
        mixed = torch.tensordot(self.preference, self.core.detach(), 1)
        product = gradient @ right
        self.left.grad = product @ mixed.T
        self.right.grad = gradient.T @ (left @ mixed)
        self.core.grad = self.preference[:, None, None] * (left.T @ product)


class Distances:
    """S_t = Σ_l ‖W_l - θ_tl‖² over the merged tensors, and the gradient of Σ_t w_t S_t.

    Inner products of task vectors stand for the task vectors: with R_ts = λ_s - 1[s = t], K_st = ⟨τ_s, τ_t⟩ and
    U = A C Bᵀ, ‖W - θ_t‖² = (R K Rᵀ)_tt + 2 Σ_s R_ts ⟨τ_s, U⟩ + ‖U‖². Sums are in float64.
    """

    def __init__(self, parametrisation: Parametrisation) -> None:
        self.parametrisation = parametrisation
        experts, device = parametrisation.experts, parametrisation.coefficients.device
        # Names of one tensor share a part.
        parts = {id(part): (name, part) for name, part in reversed(parametrisation.parts.items())}.values()
        self.rows = torch.tensor([parametrisation.rows[name] for name, _ in parts], device=device)
        self.gram = torch.stack([experts.inner_products(name) for name, _ in parts]).to(device)  # [L, T, T]
        self.preferred = [(number, part) for number, (_, part) in enumerate(parts) if isinstance(part, Preferred)]

    @torch.no_grad()
    def measure(self) -> Tensor:
        """Return S [T] in float64 at the present learnables and preference."""
        coefficients = self.parametrisation.coefficients.to(self.gram)[self.rows]
        self._residual = coefficients[:, None, :] - torch.eye(coefficients.shape[1]).to(self.gram)
        self._slope = self._residual @ self.gram
        self._inner = torch.zeros_like(coefficients)
        total = (self._slope * self._residual).sum((0, 2))
        for number, part in self.preferred:
            left, right = part.factors()
            update = (left @ right.T).flatten()  # [m·n]
            self._inner[number] = torch.mv(part.deltas, update.to(part.deltas.device)).to(self._inner)
            forget(part.deltas)
            total += torch.sum(update.square(), dtype=total.dtype)
        return total + 2 * torch.einsum("lts,ls->t", self._residual, self._inner)  # [T]

    @torch.no_grad()
    def pull_back(self, weights: Tensor) -> None:
        """Set the gradients of all learnables, at the state of the last `measure`, from w [T]."""
        result = self.parametrisation.coefficients
        slope = 2 * (torch.einsum("t,lts->ls", weights, self._slope) + weights.sum() * self._inner)  # [L, T]
        if result.requires_grad:
            result.grad = torch.zeros_like(result).index_add_(0, self.rows, slope.to(result))
        scales = 2 * torch.einsum("t,lts->ls", weights, self._residual)  # [L, T]
        for number, part in self.preferred:
            left, right = part.factors()
            gradient = torch.mv(part.deltas.T, scales[number].to(part.deltas)).view_as(part.origin).to(part.origin)
            forget(part.deltas)
            gradient.addmm_(left * (2 * weights.sum()).to(left), right.T)
            part.pull_back_factors(gradient)
