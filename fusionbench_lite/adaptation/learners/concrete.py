"""Concrete subspaces: one relaxed Bernoulli mask on the task vectors of all tasks, learned before or with λ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.draws import open_uniform
from fusionbench_lite.adaptation.engine.descent import Descent
from fusionbench_lite.adaptation.engine.naming import rename_state
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.placement import forget, put
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Draw, Update
from fusionbench_lite.errors import MergeError
from fusionbench_lite.weights.parallel import each


class Masked(nn.Module):
    """W = θ0 + m̂ ⊙ D with D = Σ_t λ_t τ_t and a mask that all tasks share (Concrete, Tang et al. 2023; docs/decisions.md, D4).

    `logits` x are learned, one per entry. A draw u from (0, 1) gives m = σ((log u - log(1 - u) + x) / κ), and
    m̂ = m / mean(m). With a = G ⊙ D and μ = mean(m):

        ∂L/∂λ_t = ⟨G ⊙ m̂, τ_t⟩        ∂L/∂x = (a - mean(a ⊙ m̂)) ⊙ m̂ ⊙ (1 - μ m̂) / κ

    `vectors` are the τ_t [T, *shape], or D itself [*shape] where λ never changes. Draws are keyed by `key` and their
    number and made on the device of the tensor; `sample` makes one.
    """

    origin: Tensor

    def __init__(self, origin: Tensor, vectors: Tensor, temperature: float, key: Sequence[object]) -> None:
        super().__init__()
        self.origin = origin.contiguous()
        self.temperature = temperature
        self.key = tuple(key)
        self.logits = nn.Parameter(torch.zeros_like(self.origin))
        self._constant = vectors.view_as(self.origin) if vectors.dim() == origin.dim() else None
        self._flat = put(vectors.flatten(1)) if self._constant is None else vectors.view(1, -1)  # [T, n] or [1, n]
        self._sampled: tuple[int, int] | None = None
        self._mask = self._mean = torch.empty(0)

    def sample(self, draw: int) -> None:
        """Make m̂ from the present logits and a draw; nothing is done where it is there already."""
        wanted = draw, self.logits._version
        if self._sampled != wanted:
            self._mask = torch.empty(0)
            noise = open_uniform(self.origin.shape, *self.key, draw, device=self.origin.device).to(self.origin).logit_()
            mask = noise.add_(self.logits.detach().to(self.origin)).div_(self.temperature).sigmoid_()
            self._mean = mask.mean().clamp_min(torch.finfo(mask.dtype).tiny)
            self._mask = mask.div_(self._mean)
            self._sampled = wanted

    def combine(self, coefficients: Tensor, out: Tensor) -> None:
        """Write the merged tensor into `out`."""
        torch.addcmul(self.origin, self._difference(coefficients, out), self._mask, out=out)

    def pull_back(self, coefficients: Tensor, gradient: Tensor) -> Tensor:
        """Set the gradient of the logits where they are learned, in the memory of G; else return ∂L/∂λ [T]."""
        if not self.logits.requires_grad:
            products = torch.mv(self._flat, (gradient * self._mask).flatten().to(self._flat.device))  # [T]
            forget(self._flat)
            return products
        slope = gradient.mul_(self._difference(coefficients))
        slope -= torch.dot(slope.flatten(), self._mask.flatten()) / slope.numel()
        self.logits.grad = slope.mul_(self._mask).mul_(self._mask.mul(-self._mean).add_(1).div_(self.temperature))
        return slope.new_zeros(len(coefficients))

    def _difference(self, coefficients: Tensor, out: Tensor | None = None) -> Tensor:
        """Return D, in `out` if it is not there yet."""
        if self._constant is not None:
            return self._constant
        out = torch.empty_like(self.origin) if out is None else out
        here = out if out.device == self._flat.device else torch.empty_like(out, device=self._flat.device)
        torch.mv(self._flat.T, coefficients.to(here), out=here.view(-1))  # [n]
        forget(self._flat)
        return out if here is out else out.copy_(here)


class Concrete(Descent):
    """Steps on the masks, then steps on λ at one mask that is drawn at the end of them.

    A mask step is preceded by an Adam step on λ with `inner_lr`, on a batch of its own, that is undone afterwards
    (Concrete AM): the masks become good for an adapted λ. With `inner_lr` None it is not (Concrete TA). Step i masks
    with draw i. `mask_steps` None: all steps are mask steps. `released`: the inner forward pass sees the λ that the step
    before had adapted, as the authors' code does, which resets λ after merging with it.
    """

    drops = False

    def __init__(
        self, parametrisation: Parametrisation, context: Context, *, initial: float, mask_lr: float,
        inner_lr: float | None = None, mask_steps: int | None = None, released: bool = False,
    ) -> None:
        super().__init__(parametrisation, context)
        self.mask_steps = context.steps if mask_steps is None else mask_steps
        if self.mask_steps > context.steps:
            raise MergeError(
                f"mask_steps={mask_steps} is more than the steps, {context.steps}: lower mask_steps or raise steps"
            )
        self.initial, self.mask_lr, self.inner_lr = initial, mask_lr, inner_lr
        self._parts = {  # names of one tensor share a part
            name: part for name, part in parametrisation.parts.items()
            if isinstance(part, Masked) and name.replace(".", "/") in parametrisation.learned_parts
        }
        self._finished = 0
        self._adapted: Tensor | None = None
        if released:  # a buffer, because the next step depends on it
            self._adapted = parametrisation.coefficients.detach().clone()
            parametrisation.register_buffer("adapted", self._adapted)
        rename_state(
            parametrisation, {f"learned_parts.{name.replace('.', '/')}.logits": f"logits/{name}" for name in self._parts}
        )

    def draws(self, step: int) -> Sequence[Draw]:
        """Two draws in mask steps with an inner step, the inner one first; one in all others."""
        if self.inner_lr is None:
            return (Draw(step),)
        if step < self.mask_steps:
            return Draw(2 * step), Draw(2 * step + 1)
        return (Draw(self.mask_steps + step),)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Adam on the logits; with an inner step two more on λ, for the inner steps and for those after the mask steps."""
        coefficients = [self.parametrisation.coefficients]
        masks = torch.optim.Adam([part.logits for part in self._parts.values()], lr=self.mask_lr)
        self._optimizers = [masks]
        if self.inner_lr is not None:
            lrs = self.inner_lr, self.parametrisation.lr
            self._optimizers += [torch.optim.Adam(coefficients, lr=lr) for lr in lrs]
        return self._optimizers

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Do a mask step, with its inner step where there is one, or a step on λ; return the loss of the last batch."""
        *inner, batch = batches
        masks = step < self.mask_steps
        if inner:
            self._inner_step(step, inner[0], update)
        losses = self._differentiate(step, batch, masks=masks)
        self._update(losses, self._optimizers[0 if masks else 2], update)
        if inner:
            self.parametrisation.coefficients.data.fill_(self.initial)
        self._finished = step + 1
        return losses

    def _inner_step(self, step: int, batch: Batch, update: Update) -> None:
        coefficients = self.parametrisation.coefficients.data
        if self._adapted is not None:
            coefficients.copy_(self._adapted)
        losses = self._differentiate(step, batch, masks=False)
        coefficients.fill_(self.initial)
        self._update(losses, self._optimizers[1], update)
        if self._adapted is not None:
            self._adapted.copy_(coefficients)

    def _differentiate(self, step: int, batch: Batch, *, masks: bool) -> Mapping[str, Tensor]:
        """Return each task's loss, and set the gradients of the logits or of λ."""
        self.parametrisation.coefficients.requires_grad_(not masks)
        for part in self._parts.values():
            part.logits.requires_grad_(masks)
        self._merge(step)
        losses = self.encoder.accumulate(batch, self.objective)
        self.parametrisation.pull_back(self.encoder.gradients())
        return losses

    def _update(self, losses: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, update: Update) -> None:
        update(losses, optimizer)
        optimizer.zero_grad()  # their memory is that of the gradients at the weights

    def _merge(self, step: int) -> None:
        self._sample(step, self.encoder.leaves)
        self.encoder.refresh()

    def _sample(self, step: int, names: Mapping[str, object]) -> None:
        draw = min(step, self.mask_steps)
        each(lambda name: self._parts[name].sample(draw), names)

    def refresh(self, step: int) -> None:
        """Merge with the present λ and a mask of the present logits: the draw that the next step would use."""
        self._finished = step
        self._merge(step)

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the weights merged with the mask of `refresh`."""
        self._sample(self._finished, self._parts)
        return super().merged(task)
