"""How single tensors depend on merging coefficients and masks, and the gradients of both in closed form.

A part writes a merged tensor W = f(φ) outside autograd, and later turns G = ∂L/∂W into ∂L/∂φ. Nothing of size
tasks × weights is built for that, and nothing is saved for a backward pass.

Constants may be elsewhere than the merged tensors (see `placement`): task vectors are summed where they are, and only the
merged tensor and its gradient travel; singular components travel to the gradient, a few tasks at a time.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.placement import forget, put

BLOCK = 1 << 17
"""Elements of a tensor that a processor merges at a time: half a megabyte in float32 stays in its cache."""

PRODUCT = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Elements of one U G product at most: small matrices of several tasks share a product, large ones stay in cache."""


class Part(Protocol):
    """How one merged tensor depends on its merging coefficients λ [T] (and on learnables of its own)."""

    origin: Tensor

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write the merged tensor into `out`; coefficients are in the processor's memory."""

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return ∂L/∂λ [T] from G, the gradient at the merged tensor, and set the gradients of own learnables."""


class Vectors:
    """W = θ_o + Σ_t λ_t Δ_t with constant Δ [T, *shape]; ∂L/∂λ_t = ⟨G, Δ_t⟩ (docs/decisions.md, D4)."""

    def __init__(self, origin: Tensor, deltas: Tensor) -> None:
        self._flat = put(deltas.flatten(1))  # [T, n]
        self.origin = origin.contiguous().to(self._flat.device)
        self._block = BLOCK if self._flat.device.type == "cpu" else max(origin.numel(), 1)
        pieces = zip(*(torch.split(row, self._block) for row in self._flat), strict=True)
        self._blocks = list(zip(torch.split(self.origin.view(-1), self._block), pieces, strict=True))

    @property
    def flat(self) -> Tensor:
        """The Δ_t as rows [T, n], where they are kept."""
        return self._flat

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write θ_o + Σ_t λ_t Δ_t into `out`, adding tasks in order as task arithmetic does.

        A processor sums large tensors in blocks that stay in its cache between tasks.
        """
        first, *others = coefficients.tolist()
        here = out if out.device == self.origin.device else torch.empty_like(self.origin)
        targets = torch.split(here.view(-1), self._block)  # pieces of [n]
        for target, (origin, (delta, *deltas)) in zip(targets, self._blocks, strict=True):
            torch.add(origin, delta, alpha=first, out=target)
            for weight, delta in zip(others, deltas, strict=True):
                target.add_(delta, alpha=weight)
        forget(self._flat)
        if here is not out:
            out.copy_(here)

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return ⟨G, Δ_t⟩ for every task."""
        products = torch.mv(self._flat, gradient.flatten().to(self._flat.device))  # [T]
        forget(self._flat)
        return products


class Factors(nn.Module):
    """W = θ_o + Σ_t λ_t U_t diag(b_t ⊙ s_t) V_tᵀ with learned hard masks b (AdaRank, Eq. 5 to 7).

    `logits` [T, r] are the mask logits b̃; with m = σ(b̃/κ) the hard mask is b = 1[m > ½], and the gradient of m is
    passed straight through it. With q_tr = s_tr u_trᵀ G v_tr (docs/decisions.md, D4):

        ∂L/∂λ_t = Σ_r b_tr q_tr        ∂L/∂b̃_tr = λ_t q_tr m_tr (1 - m_tr) / κ

    `left` [T, r, m] and `right` [T, r, n] hold u and v as rows, `values` [T, r] the singular values. At the start the
    first `active` components of every task are on; with `keep` their sums Δ_t stay as dense matrices, which cost the
    memory of one task vector each. A merge takes those and the components flipped since, or the active components
    alone in one product over all tasks, whichever are fewer (without `keep` always the latter): it depends on the
    current mask only, so rounding does not build up with flips (both agree to 1e-5) and a resumed run repeats it bit for
    bit. `deltas` [T, m, n], where given, are the sums of all components (exact singular value decompositions); their
    memory is taken over. Masks are worked out where the components are, whatever device the logits are moved to.
    """

    origin: Tensor

    def __init__(
        self, origin: Tensor, left: Tensor, values: Tensor, right: Tensor, active: int, *, temperature: float,
        deltas: Tensor | None = None, rank: int | None = None, learn: bool = True, keep: bool = True,
    ) -> None:
        super().__init__()
        self.origin = origin.contiguous()
        self.left, self.values, self.right = left, values, right  # until the sums are made
        self.temperature = temperature
        self.rank = rank or values.shape[1]
        logits = torch.full_like(values, -0.1)
        logits[:, :active] = 0.1
        self.logits = nn.Parameter(logits, requires_grad=learn)
        self._start = self.bits()
        self._dense: Vectors | None = None
        if keep:
            if deltas is None or not bool(self._start.all()):
                deltas = self._sums(self._start, deltas)
            self._dense = Vectors(origin, deltas)
        if learn:  # a mask that stays is made into vectors, and the components are not needed
            self.left, self.right = put(left), put(right)
            self.values, self._start = values.to(self.left.device), self._start.to(self.left.device)
            self.origin = self.origin.to(self.left.device)

    def bits(self) -> Tensor:
        """Return the hard mask b [T, r] of the components that are held."""
        return self._soft() > 0.5

    def _soft(self) -> Tensor:
        return torch.sigmoid(self.logits.detach().to(self.values.device) / self.temperature)

    def mask(self) -> Tensor:
        """Return the hard mask over all `rank` components, False for those that are not held."""
        bits = self.bits()
        return nn.functional.pad(bits, (0, self.rank - bits.shape[1]))

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write the merged tensor into `out`, from its start and the flipped components or from the active ones."""
        bits = self.bits()
        scale = coefficients.to(bits.device)[:, None] * self.values
        flipped = bits != self._start
        if self._dense is not None and int(flipped.sum()) <= int(bits.sum()):
            self._dense.combine(coefficients, out)
            self._add_components(flipped, torch.where(bits, scale, -scale), out)
        else:
            out.copy_(self.origin)
            self._add_components(bits, scale, out)

    def _add_components(self, chosen: Tensor, scale: Tensor, out: Tensor) -> None:
        task, component = chosen.nonzero(as_tuple=True)
        if len(task):
            left = self.left[task, component].mul_(scale[task, component, None]).to(out.device)
            out.addmm_(left.T, self.right[task, component].to(out.device))
            forget(self.left, self.right)

    def _sums(self, bits: Tensor, out: Tensor | None = None) -> Tensor:
        """Return Δ_t = U_t diag(b_t ⊙ s_t) V_tᵀ of every task, [T, m, n], in `out` if given."""
        if out is None:
            out = self.origin.new_empty((len(bits), *self.origin.shape))
        for target, chosen, left, values, right in zip(out, bits, self.left, self.values, self.right, strict=True):
            torch.mm((left[chosen] * values[chosen, None]).T, right[chosen], out=target)
        return out

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return Σ_r b_tr q_tr for every task and set the gradient of the mask logits."""
        inner = self._inner_products(gradient).to(self.values.device).mul_(self.values)
        if self.logits.requires_grad:
            soft = self._soft()
            scale = coefficients.to(inner.device)[:, None]
            slope = scale * inner * (soft * (1 - soft) / self.temperature)
            self.logits.grad = slope.to(self.logits.device)
        return (inner * self.bits()).sum(1)

    def _inner_products(self, gradient: Tensor) -> Tensor:
        """Return u_trᵀ G v_tr, [T, r]: one product with the longer side's vectors, then row by row with the others."""
        first, second = self.left, self.right
        if gradient.shape[0] < gradient.shape[1]:
            first, second, gradient = second, first, gradient.T
        tasks, rank, width = second.shape
        together = max(1, min(tasks, PRODUCT.get(gradient.device.type, BLOCK) // max(rank * width, 1)))
        rows = []
        for parts in zip(torch.split(first, together), torch.split(second, together), strict=True):
            some, others = (part.flatten(0, 1).to(gradient.device) for part in parts)  # [tasks·r, side] each
            rows.append((some @ gradient).mul_(others).sum(1))
        forget(first, second)
        return torch.cat(rows).view(tasks, rank)

    def frozen(self) -> Vectors:
        """Return the same merge with the mask at its present value for ever: constant Δ_t = U_t diag(b_t s_t) V_tᵀ."""
        bits = self.bits()
        if self._dense is not None and torch.equal(bits, self._start):
            return self._dense
        return Vectors(self.origin, self._sums(bits))


class Sum(nn.Module):
    """W = θ_o + λ_0 (common block) + Σ_t λ_t (block of task t), for coefficients [1 + T]; both parts hold one kind.

    `common` is a part of one pseudo-task around θ_o, `own` one of T tasks around 0.
    """

    origin: Tensor

    def __init__(self, common: Part, own: Part) -> None:
        super().__init__()
        self.common, self.own = common, own  # modules among them register themselves
        self.origin = common.origin

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write the merged tensor into `out`."""
        self.common.combine(coefficients[:1], out)
        rest = torch.empty_like(out)
        self.own.combine(coefficients[1:], rest)
        out.add_(rest)

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return ∂L/∂λ [1 + T] and set the gradients of both parts' logits."""
        return torch.cat([
            self.common.pull_back(coefficients[:1], gradient), self.own.pull_back(coefficients[1:], gradient)
        ])


class TasksAlone:
    """A part of the tasks among parts with a common block: of its coefficients [1 + T] the first has no effect."""

    def __init__(self, own: Part) -> None:
        self.own = own
        self.origin = own.origin

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write the merged tensor into `out`."""
        self.own.combine(coefficients[1:], out)

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return ∂L/∂λ [1 + T], the first 0."""
        return nn.functional.pad(self.own.pull_back(coefficients[1:], gradient), (1, 0))
