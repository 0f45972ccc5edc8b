"""MetaMerging at work: coefficients learned through the training of adapters, then the adapters themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionbench_lite.adaptation.engine.core import MergedEncoder
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Draw, Examples, Update
from fusionbench_lite.adaptation.learners.adapter_training import Adapters, AdapterTraining
from fusionbench_lite.adaptation.learners.bottlenecks import Phi, portions
from fusionbench_lite.weights.experts import Experts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The steps on raw: `steps` of them, each after `inner_steps` of the adapters with `inner_lr`, and with the `second`-order
    part of the gradient, on `batch_size` examples of a task, None for the run's. `adam`, else plain gradient descent. `per_task`:
    a step after each task's loss, with the weights merged anew, else one on their sum."""

    steps: int
    inner_steps: int
    inner_lr: float
    second: bool
    batch_size: int | None
    adam: bool
    per_task: bool = False


class Softplus(Parametrisation):
    """λ = log(1 + exp(raw)), one number per task for all tensors; ∂λ/∂raw = σ(raw)."""

    def pull_back(self, gradients: Mapping[str, Tensor]) -> None:
        """Set the gradient of raw."""
        super().pull_back(gradients)
        if self.coefficients.grad is not None:
            self.coefficients.grad *= torch.sigmoid(self.coefficients.detach())

    def _effective(self) -> Tensor:
        return nn.functional.softplus(self.coefficients.detach().cpu())

    def named_coefficients(self) -> dict[str, Tensor]:
        """Return λ [T] of every floating-point tensor."""
        (values,) = self._effective()
        return {name: values.clone() for name in self.rows}


class Meta(AdapterTraining):
    """Stage 1, the first steps: φ_k' = φ_k - α ∂L_k/∂φ_k from the same φ_k each time, then a step on raw by Σ_k L_k(φ_k').
    Stage 2: λ stays, Adam on φ. L_k is the distance between the adapted merged model's features and expert k's.

    With v = ∂L'/∂φ' and G = ∂L'/∂W, each inner step, last first, adds its second-order part (docs/decisions.md,
    D10): G ← G - α ∂⟨∂L/∂φ, v⟩/∂W and v ← v - α ∂⟨∂L/∂φ, v⟩/∂φ. Tasks run one after another, and
    share the gradient at the merged weights.
    """

    def __init__(
        self, experts: Experts, adapters: Adapters, first: Stage, parametrisation: Softplus, context: Context
    ) -> None:
        super().__init__(experts, adapters, experts.pretrained, context)
        self.parametrisation, self.first = parametrisation, first
        self.encoder = MergedEncoder(context, parametrisation)
        self.learnables["merge"] = parametrisation
        self._is_merged = False

    def _accept(self, module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._accept(module, state, prefix, *others)
        if f"{prefix}raw" in state:
            state[f"{prefix}merge.coefficients"] = state.pop(f"{prefix}raw")[None]

    def draws(self, step: int) -> Sequence[Draw]:
        """Return the inner batches and the outer one, which goes through the data in order; in stage 2 one batch."""
        if step >= self.first.steps:
            return super().draws(step - self.first.steps)
        count = self.first.inner_steps
        inner = [Draw(step * count + number, role="inner", part=self.part("inner")) for number in range(count)]
        outer = Draw(step, role="outer", kind="sequential", size=self.first.batch_size, part=self.part("outer"))
        return (*inner, outer)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Adam or plain gradient descent on raw, and Adam on the adapters."""
        kind = torch.optim.Adam if self.first.adam else torch.optim.SGD
        self._of_raw: torch.optim.Optimizer = kind(self.parametrisation.parameters(), lr=self.parametrisation.lr)
        return (self._of_raw, *(super().optimizers() if len(self.adapters.parts) else ()))

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Do one step of the stage that it belongs to."""
        if step < self.first.steps:
            return self._meta_step(batches, update)
        if not self._is_merged:
            self.refresh(step)
        return super().step(step, batches, update)

    def _meta_step(self, batches: Sequence[Batch], update: Update) -> dict[str, Tensor]:
        *inner, outer = batches

        def accumulate(task: str, size: int) -> Tensor:
            return self._meta_loss(task, [batch[task] for batch in inner], outer[task], size)

        total: dict[str, Tensor] = {}
        # Processes that share the tasks step together: one without the task of the moment adds no gradient.
        for tasks in [[task] for task in self.tasks] if self.first.per_task else [self.tasks]:
            mine = [{task: batch[task] for task in tasks if task in batch} for batch in batches]
            self.refresh(0)
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
                losses = self._split(mine, accumulate, self._forget) if mine[-1] else {tasks[0]: self.frozen.zero()}
            self.parametrisation.pull_back(self.encoder.gradients())
            self._is_merged = False
            update(losses, self._of_raw)
            total |= {task: losses[task] for task in mine[-1]}
        return total or {self.tasks[0]: self.frozen.zero()}

    def _meta_loss(self, task: str, inner: Sequence[Examples], outer: Examples, size: int) -> Tensor:
        """Return L'_k(φ'_k), and add its gradient in W, through the inner steps, to that of the leaves."""
        second = self.first.second
        weights = self.encoder.weights if second else self.weights()
        phi = self.adapters.of(task)
        path: list[tuple[Phi, Phi | None, Examples]] = []
        for examples in inner:
            gradients, graph = self._inner(weights, phi, examples, size, keep=second)
            path.append((phi, graph, examples))
            phi = [
                (part - self.first.inner_lr * gradient).detach().requires_grad_()
                for part, gradient in zip(phi, gradients, strict=True)
            ]
        loss = self.adapters.descend(self.encoder.weights, phi, outer, size, [*self.encoder.leaves.values(), *phi])
        if second and path:
            direction = [part.grad for part in phi if part.grad is not None]
            while path:
                phi, graph, examples = path.pop()
                self._curve(phi, graph, examples, size, direction)
                direction = [v if part.grad is None else v + part.grad for v, part in zip(direction, phi, strict=True)]
        return loss

    def _inner(
        self, weights: Mapping[str, Tensor], phi: Phi, examples: Examples, size: int, *, keep: bool
    ) -> tuple[Phi, Phi | None]:
        """Return ∂L/∂φ, and once more with its graph where that is to be kept and one forward pass does."""
        keep = keep and size >= len(examples)
        total: Phi | None = None
        for part, share in portions(examples, size):
            loss = self.adapters.loss(weights, phi, part) * share
            gradients = torch.autograd.grad(loss, phi, create_graph=keep)
            total = list(gradients) if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
        assert total is not None
        return total, total if keep else None

    def _curve(self, phi: Phi, graph: Phi | None, examples: Examples, size: int, direction: Phi) -> None:
        """Add -α times the gradients of ⟨∂L/∂φ, v⟩ in W and in φ to those of the leaves."""
        leaves = [*self.encoder.leaves.values(), *phi]
        for part, share in [(examples, 1.0)] if graph is not None else portions(examples, size):
            gradients: Sequence[Tensor] | None = graph
            if gradients is None:
                loss = self.adapters.loss(self.encoder.weights, phi, part) * share
                gradients = torch.autograd.grad(loss, phi, create_graph=True)
            products = [(gradient * v).sum() for gradient, v in zip(gradients, direction, strict=True)]
            (-self.first.inner_lr * torch.stack(products).sum()).backward(inputs=leaves)  # type: ignore[no-untyped-call]

    def _forget(self) -> None:
        for leaf in self.encoder.leaves.values():
            leaf.grad = None

    def weights(self) -> Mapping[str, Tensor]:
        """Return the merged weights of the last refresh, which take no gradient."""
        return {name: tensor.detach() for name, tensor in self.encoder.weights.items()}

    def refresh(self, step: int) -> None:
        """Merge with the present λ."""
        self.encoder.refresh()
        self._is_merged = True

    def coefficients(self) -> dict[str, Tensor]:
        """Return λ = softplus(raw)."""
        return self.parametrisation.named_coefficients()

    def learned(self) -> dict[str, Tensor]:
        """Return `raw` [T] and the adapters."""
        return {"raw": self.parametrisation.coefficients.detach().cpu()[0].clone(), **super().learned()}

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the merged weights, without adapters."""
        return self.parametrisation.merged()
