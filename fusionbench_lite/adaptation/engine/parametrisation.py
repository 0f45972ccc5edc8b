"""Maps from a few learnable numbers φ to merged weights, with their gradients in closed form.

A parametrisation writes the merged tensors W = f(φ) outside autograd, and later turns G = ∂L/∂W into ∂L/∂φ. Nothing
of size tasks × weights is built for that, and nothing is saved for a backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from fusionbench_lite.weights.experts import Experts


BLOCK = 1 << 17
"""Elements of a tensor that are merged at a time: half a megabyte in float32."""


class Part(Protocol):
    """How one merged tensor depends on its merging coefficients λ [T] (and on learnables of its own)."""

    origin: Tensor

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write the merged tensor into `out`."""

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return ∂L/∂λ [T] from G, the gradient at the merged tensor, and set the gradients of own learnables."""


class Vectors:
    """W = θ_o + Σ_t λ_t Δ_t with constant Δ [T, *shape]; ∂L/∂λ_t = ⟨G, Δ_t⟩ (specification 1.4-1)."""

    def __init__(self, origin: Tensor, deltas: Tensor) -> None:
        self.origin = origin
        self.deltas = deltas
        self._flat = deltas.flatten(1)

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write θ_o + Σ_t λ_t Δ_t into `out`, adding tasks in order as task arithmetic does.

        Large tensors are summed in blocks that stay in the processor's cache between tasks.
        """
        weights, origin, target = coefficients.tolist(), self.origin.reshape(-1), out.view(-1)
        for start in range(0, target.numel(), BLOCK):
            block = target[start : start + BLOCK].copy_(origin[start : start + BLOCK])
            for weight, delta in zip(weights, self._flat, strict=True):
                block.add_(delta[start : start + BLOCK], alpha=weight)

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return ⟨G, Δ_t⟩ for every task."""
        return torch.mv(self._flat, gradient.flatten())


class Parametrisation(nn.Module):
    """Merged weights as a function of merging coefficients per tensor and task, and of what the parts learn.

    `coefficients` [L, T] holds λ, a row per floating-point tensor (with `shared` one row for all: task-wise
    coefficients), all `initial` at the start. `clamp` limits λ to [0, 1] inside the merge, with PyTorch's convention
    that the gradient passes at both ends; the raw λ is what is learned. Tensors without a part stay at `pretrained`,
    and their λ never changes. The module's own state is φ alone: weights and factors are constants.
    """

    def __init__(
        self, experts: Experts, parts: Mapping[str, Part], initial: float, *, lr: float, clamp: bool = False,
        shared: bool = False, masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.lr = lr
        self.clamp = clamp
        self.parts = dict(parts)
        self.rows = {name: 0 if shared else row for row, name in enumerate(experts.floating)}
        like = next(part.origin for part in parts.values())
        shape = (1 if shared else len(experts.floating), len(experts))
        self.coefficients = nn.Parameter(torch.full(shape, initial, dtype=like.dtype, device=like.device))
        self.learned_parts = nn.ModuleDict(
            {name.replace(".", "/"): part for name, part in parts.items() if isinstance(part, nn.Module)}
        )
        self._frozen_masks = dict(masks or {})

    @torch.no_grad()
    def write(self, name: str, out: Tensor) -> None:
        """Write one merged tensor into `out`."""
        self.parts[name].combine(self._effective(name), out)

    @torch.no_grad()
    def pull_back(self, gradients: Mapping[str, Tensor]) -> None:
        """Set the gradient of every learnable from G = ∂L/∂W; a tensor that is not listed contributes nothing."""
        gradient = torch.zeros_like(self.coefficients)
        for name, merged in gradients.items():
            gradient[self.rows[name]] += self.parts[name].pull_back(self._effective(name), merged)
        if self.clamp:
            gradient *= (self.coefficients >= 0) & (self.coefficients <= 1)
        self.coefficients.grad = gradient if self.coefficients.requires_grad else None

    def _effective(self, name: str) -> Tensor:
        row = self.coefficients.detach()[self.rows[name]]
        return row.clamp(0, 1) if self.clamp else row

    def named_coefficients(self) -> dict[str, Tensor]:
        """Return the raw λ of every floating-point tensor, {name: [T]}."""
        learned = self.coefficients.detach().cpu()
        return {name: learned[row].clone() for name, row in self.rows.items()}

    def named_masks(self) -> dict[str, Tensor]:
        """Return the hard masks of the singular components, {name: bool [T, r]}; empty where there are none."""
        learned = {name: part.mask() for name, part in self.parts.items() if isinstance(part, Factors)}
        return {name: mask.cpu().clone() for name, mask in (self._frozen_masks | learned).items()}

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """Return the merged weights in the keys, order and dtypes of the pretrained model."""
        result = {}
        for name, base in self.experts.pretrained.items():
            if name in self.parts:
                result[name] = torch.empty_like(self.parts[name].origin)
                self.write(name, result[name])
                result[name] = result[name].to(base.dtype)
            else:
                result[name] = base.detach().clone()
        return result


class Factors(nn.Module):
    """W = θ_o + Σ_t λ_t U_t diag(b_t ⊙ s_t) V_tᵀ with learned hard masks b (AdaRank, Eq. 5 to 7).

    `logits` [T, r] are the mask logits b̃; with m = σ(b̃/κ) the hard mask is b = 1[m > ½], and the gradient of m is
    passed straight through it. With q_tr = s_tr u_trᵀ G v_tr (specification 1.4-2):

        ∂L/∂λ_t = Σ_r b_tr q_tr        ∂L/∂b̃_tr = λ_t q_tr m_tr (1 - m_tr) / κ

    `left` [T, r, m] and `right` [T, r, n] hold u and v as rows, `values` [T, r] the singular values. Where all
    components together are known as dense `deltas` [T, m, n] (exact singular value decompositions), a mostly full
    mask is merged from those less the pruned components, so a merge never multiplies more than half of all
    components. Both ways depend on the current mask alone: a resumed run repeats them bit for bit.
    """

    origin: Tensor

    def __init__(
        self, origin: Tensor, left: Tensor, values: Tensor, right: Tensor, active: int, *, temperature: float,
        deltas: Tensor | None = None, rank: int | None = None, learn: bool = True,
    ) -> None:
        super().__init__()
        self.origin = origin
        self.left, self.values, self.right = left, values, right
        self.temperature = temperature
        self.dense = None if deltas is None else Vectors(origin, deltas)
        self.rank = rank or values.shape[1]
        logits = torch.full_like(values, -0.1)
        logits[:, :active] = 0.1
        self.logits = nn.Parameter(logits, requires_grad=learn)

    def bits(self) -> Tensor:
        """Return the hard mask b [T, r] of the components that are held."""
        return torch.sigmoid(self.logits.detach() / self.temperature) > 0.5

    def mask(self) -> Tensor:
        """Return the hard mask over all `rank` components, False for those that are not held."""
        bits = self.bits()
        return nn.functional.pad(bits, (0, self.rank - bits.shape[1]))

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write the merged tensor into `out`, from the active components or from all less the pruned ones."""
        bits = self.bits()
        if self.dense is not None and 2 * int(bits.sum()) > bits.numel():
            self.dense.combine(coefficients, out)
            self._add_components(~bits, -coefficients, out)
        else:
            out.copy_(self.origin)
            self._add_components(bits, coefficients, out)

    def _add_components(self, chosen: Tensor, coefficients: Tensor, out: Tensor) -> None:
        task, component = chosen.nonzero(as_tuple=True)
        if len(task):
            scale = coefficients[task] * self.values[task, component]
            left = self.left[task, component].mul_(scale[:, None])
            out.addmm_(left.T, self.right[task, component])

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return Σ_r b_tr q_tr for every task and set the gradient of the mask logits."""
        inner = torch.empty_like(self.values)
        product = torch.empty_like(self.right[0])
        for task, (left, right) in enumerate(zip(self.left, self.right, strict=True)):
            torch.mm(left, gradient, out=product)
            torch.sum(product.mul_(right), dim=1, out=inner[task])
        inner *= self.values
        if self.logits.requires_grad:
            soft = torch.sigmoid(self.logits.detach() / self.temperature)
            self.logits.grad = coefficients[:, None] * inner * (soft * (1 - soft) / self.temperature)
        return (inner * self.bits()).sum(1)

    def frozen(self) -> Vectors:
        """Return the same merge with the mask at its present value for ever: constant Δ_t = U_t diag(b_t s_t) V_tᵀ."""
        scaled = self.left * (self.values * self.bits())[:, :, None]
        return Vectors(self.origin, torch.bmm(scaled.transpose(1, 2), self.right))
