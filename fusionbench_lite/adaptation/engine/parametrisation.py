"""Maps from a few learnable numbers φ to merged weights, with their gradients in closed form.

A parametrisation writes the merged tensors W = f(φ) outside autograd, and later turns G = ∂L/∂W into ∂L/∂φ. Nothing
of size tasks × weights is built for that, and nothing is saved for a backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fusionbench_lite.weights.experts import Experts

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
    """W = θ_o + Σ_t λ_t Δ_t with constant Δ [T, *shape]; ∂L/∂λ_t = ⟨G, Δ_t⟩ (specification 1.4-1)."""

    def __init__(self, origin: Tensor, deltas: Tensor) -> None:
        self.origin = origin.contiguous()
        self._flat = deltas.flatten(1)
        self._block = BLOCK if deltas.device.type == "cpu" else max(origin.numel(), 1)
        pieces = zip(*(torch.split(row, self._block) for row in self._flat), strict=True)
        self._blocks = list(zip(torch.split(self.origin.view(-1), self._block), pieces, strict=True))

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write θ_o + Σ_t λ_t Δ_t into `out`, adding tasks in order as task arithmetic does.

        A processor sums large tensors in blocks that stay in its cache between tasks.
        """
        first, *others = coefficients.tolist()
        targets = torch.split(out.view(-1), self._block)
        for target, (origin, (delta, *deltas)) in zip(targets, self._blocks, strict=True):
            torch.add(origin, delta, alpha=first, out=target)
            for weight, delta in zip(others, deltas, strict=True):
                target.add_(delta, alpha=weight)

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return ⟨G, Δ_t⟩ for every task."""
        return torch.mv(self._flat, gradient.flatten())


class Parametrisation(nn.Module):
    """Merged weights as a function of merging coefficients per tensor and task, and of what the parts learn.

    `coefficients` [L, T] holds λ, a row per floating-point tensor (with `shared` one row for all: task-wise
    coefficients), all `initial` at the start. `clamp` limits λ to [0, 1] inside the merge, with PyTorch's convention
    that the gradient passes at both ends; the raw λ is what is learned. Tensors without a part stay at `pretrained`,
    and their λ never changes. With `common`, rows have one λ more, before those of the tasks: that of what all tasks
    share, which only parts other than `TasksAlone` have. The module's own state is φ alone: weights and factors are constants.
    """

    def __init__(
        self, experts: Experts, parts: Mapping[str, Part], initial: float, *, lr: float, clamp: bool = False,
        shared: bool = False, masks: Mapping[str, Tensor] | None = None, common: bool = False,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.lr = lr
        self.clamp = clamp
        self.parts = dict(parts)
        self.rows = {name: 0 if shared else row for row, name in enumerate(experts.floating)}
        like = next(part.origin for part in parts.values())
        self.common = int(common)
        shape = (1 if shared else len(experts.floating), self.common + len(experts))
        self.coefficients = nn.Parameter(torch.full(shape, initial, dtype=like.dtype, device=like.device))
        self.learned_parts = nn.ModuleDict(
            {name.replace(".", "/"): part for name, part in parts.items() if isinstance(part, nn.Module)}
        )
        self._frozen_masks = dict(masks or {})

    def tie(self, aliases: Mapping[str, str]) -> None:
        """Let names follow the merge, the coefficients and the mask of another: {name: the name to follow}."""
        for name, first in aliases.items():
            if name in self.rows:
                self.rows[name] = self.rows[first]
            _follow(self.parts, name, first)
            _follow(self._frozen_masks, name, first)
            if name.replace(".", "/") in self.learned_parts:
                del self.learned_parts[name.replace(".", "/")]

    @torch.no_grad()
    def write(self, targets: Mapping[str, Tensor]) -> None:
        """Write merged tensors into contiguous `targets`, rounded from the work dtype where theirs is another."""
        coefficients = self._effective()
        for name, target in targets.items():
            part = self.parts[name]
            out = target if target.dtype == part.origin.dtype else torch.empty_like(target, dtype=part.origin.dtype)
            part.combine(coefficients[self.rows[name]], out)
            if out is not target:
                target.copy_(out)

    @torch.no_grad()
    def pull_back(self, gradients: Mapping[str, Tensor]) -> None:
        """Set the gradient of every learnable from G = ∂L/∂W; a tensor that is not listed contributes nothing."""
        coefficients = self._effective()
        gradient = torch.zeros_like(self.coefficients)
        for name, merged in gradients.items():
            row = self.rows[name]
            gradient[row] += self.parts[name].pull_back(coefficients[row], merged)
        if self.clamp:
            gradient *= (self.coefficients >= 0) & (self.coefficients <= 1)
        self.coefficients.grad = gradient if self.coefficients.requires_grad else None

    def _effective(self) -> Tensor:
        """Return the λ of the merge in the processor's memory: one transfer for all tensors."""
        coefficients = self.coefficients.detach().cpu()
        return coefficients.clamp(0, 1) if self.clamp else coefficients

    def named_coefficients(self) -> dict[str, Tensor]:
        """Return the raw λ of every floating-point tensor, {name: [T]}, and of common blocks, {name/common: [1]}."""
        learned = self.coefficients.detach().cpu()
        result = {name: learned[row, self.common :].clone() for name, row in self.rows.items()}
        for name, part in self.parts.items():
            if self.common and not isinstance(part, TasksAlone):
                result[f"{name}/common"] = learned[self.rows[name], :1].clone()
        return result

    def named_masks(self) -> dict[str, Tensor]:
        """Return the hard masks of the singular components, {name: bool [T, r]}; empty where there are none."""
        learned = {name: part.mask() for name, part in self._factors()}
        return {name: mask.cpu().clone() for name, mask in (self._frozen_masks | learned).items()}

    def spectra(self) -> dict[str, Tensor]:
        """Return the singular values behind the masks, {spectrum/name: [T, r]}."""
        return {f"spectrum/{name}": part.values.detach().cpu() for name, part in self._factors()}

    def _factors(self) -> Iterator[tuple[str, Factors]]:
        for name, part in self.parts.items():
            if isinstance(part, Factors):
                yield name, part
            elif isinstance(part, Sum):
                for suffix, piece in (("", part.own), ("/common", part.common)):
                    if isinstance(piece, Factors):
                        yield name + suffix, piece

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """Return the merged weights in the keys, order and dtypes of the pretrained model."""
        result = {}
        for name, base in self.experts.pretrained.items():
            result[name] = base.detach().clone(memory_format=torch.contiguous_format)
        self.write({name: tensor for name, tensor in result.items() if name in self.parts})
        return result


def _follow(table: dict[str, Any], name: str, first: str) -> None:
    table.pop(name, None)
    if first in table:
        table[name] = table[first]


class Factors(nn.Module):
    """W = θ_o + Σ_t λ_t U_t diag(b_t ⊙ s_t) V_tᵀ with learned hard masks b (AdaRank, Eq. 5 to 7).

    `logits` [T, r] are the mask logits b̃; with m = σ(b̃/κ) the hard mask is b = 1[m > ½], and the gradient of m is
    passed straight through it. With q_tr = s_tr u_trᵀ G v_tr (specification 1.4-2):

        ∂L/∂λ_t = Σ_r b_tr q_tr        ∂L/∂b̃_tr = λ_t q_tr m_tr (1 - m_tr) / κ

    `left` [T, r, m] and `right` [T, r, n] hold u and v as rows, `values` [T, r] the singular values. At the start the
    first `active` components of every task are on; their sums Δ_t are kept as dense matrices, which cost the memory of
    one task vector each. A merge takes those and the components flipped since, or the active components alone,
    whichever are fewer: it depends on the current mask only, so rounding does not build up with flips (a full rebuild
    agrees to 1e-5) and a resumed run repeats it bit for bit. `deltas` [T, m, n], where given, are the sums of all
    components (exact singular value decompositions); their memory is taken over.
    """

    origin: Tensor

    def __init__(
        self, origin: Tensor, left: Tensor, values: Tensor, right: Tensor, active: int, *, temperature: float,
        deltas: Tensor | None = None, rank: int | None = None, learn: bool = True,
    ) -> None:
        super().__init__()
        self.origin = origin.contiguous()
        self.left, self.values, self.right = left, values, right
        self.temperature = temperature
        self.rank = rank or values.shape[1]
        logits = torch.full_like(values, -0.1)
        logits[:, :active] = 0.1
        self.logits = nn.Parameter(logits, requires_grad=learn)
        self._start = self.bits()
        if deltas is None or not bool(self._start.all()):
            deltas = self._sums(self._start, deltas)
        self._dense = Vectors(origin, deltas)

    def bits(self) -> Tensor:
        """Return the hard mask b [T, r] of the components that are held."""
        return torch.sigmoid(self.logits.detach() / self.temperature) > 0.5

    def mask(self) -> Tensor:
        """Return the hard mask over all `rank` components, False for those that are not held."""
        bits = self.bits()
        return nn.functional.pad(bits, (0, self.rank - bits.shape[1]))

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write the merged tensor into `out`, from its start and the flipped components or from the active ones."""
        bits = self.bits()
        scale = coefficients.to(bits.device)[:, None] * self.values
        flipped = bits != self._start
        if int(flipped.sum()) <= int(bits.sum()):
            self._dense.combine(coefficients, out)
            self._add_components(flipped, torch.where(bits, scale, -scale), out)
        else:
            out.copy_(self.origin)
            self._add_components(bits, scale, out)

    def _add_components(self, chosen: Tensor, scale: Tensor, out: Tensor) -> None:
        task, component = chosen.nonzero(as_tuple=True)
        if len(task):
            left = self.left[task, component].mul_(scale[task, component, None])
            out.addmm_(left.T, self.right[task, component])

    def _sums(self, bits: Tensor, out: Tensor | None = None) -> Tensor:
        """Return Δ_t = U_t diag(b_t ⊙ s_t) V_tᵀ of every task, [T, m, n], in `out` if given."""
        if out is None:
            out = self.origin.new_empty((len(bits), *self.origin.shape))
        for target, chosen, left, values, right in zip(out, bits, self.left, self.values, self.right, strict=True):
            torch.mm((left[chosen] * values[chosen, None]).T, right[chosen], out=target)
        return out

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Return Σ_r b_tr q_tr for every task and set the gradient of the mask logits."""
        inner = self._inner_products(gradient).mul_(self.values)
        if self.logits.requires_grad:
            soft = torch.sigmoid(self.logits.detach() / self.temperature)
            scale = coefficients.to(inner.device)[:, None]
            self.logits.grad = scale * inner * (soft * (1 - soft) / self.temperature)
        return (inner * self.bits()).sum(1)

    def _inner_products(self, gradient: Tensor) -> Tensor:
        """Return u_trᵀ G v_tr, [T, r]: one product with the longer side's vectors, then row by row with the others."""
        first, second = self.left, self.right
        if gradient.shape[0] < gradient.shape[1]:
            first, second, gradient = second, first, gradient.T
        tasks, rank, width = second.shape
        together = max(1, min(tasks, PRODUCT.get(gradient.device.type, BLOCK) // max(rank * width, 1)))
        rows = [
            (some.flatten(0, 1) @ gradient).mul_(others.flatten(0, 1)).sum(1)
            for some, others in zip(torch.split(first, together), torch.split(second, together), strict=True)
        ]
        return torch.cat(rows).view(tasks, rank)

    def frozen(self) -> Vectors:
        """Return the same merge with the mask at its present value for ever: constant Δ_t = U_t diag(b_t s_t) V_tᵀ."""
        bits = self.bits()
        return self._dense if torch.equal(bits, self._start) else Vectors(self.origin, self._sums(bits))


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
