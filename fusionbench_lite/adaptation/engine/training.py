"""Ordinary training of all weights with labels, as a procedure: the reference that merging is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.core import call, in_chunks
from fusionbench_lite.adaptation.engine.objectives import objective
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Examples, Procedure, Update
from fusionbench_lite.weights.experts import Experts

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.multitask import TraditionalMtl


class Training(Procedure):
    """AdamW on every floating-point tensor that the model reads, from the pretrained weights."""

    reads_labels = True
    split = "train"

    def __init__(self, experts: Experts, h: TraditionalMtl, context: Context) -> None:
        self.experts, self.h, self.context, self.chunk = experts, h, context, context.chunk
        known = context.model.state_dict()
        names = [name for name in experts.names if name in known]
        self.weights = {name: nn.Parameter(experts.base(name).clone()) for name in names}
        self.learnables = nn.ParameterDict({name.replace(".", "/"): tensor for name, tensor in self.weights.items()})
        self.objective = objective("cross_entropy", context.heads)
        self._constants = {name: experts.pretrained[name] for name in experts.layout if name in known and name not in names}

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """AdamW, whose learning rate `step` sets."""
        self._optimizer = torch.optim.AdamW(self.weights.values(), lr=self.h.lr, weight_decay=self.h.weight_decay)
        return (self._optimizer,)

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Do one step of training."""
        (batch,) = batches
        self._optimizer.zero_grad(set_to_none=True)
        losses = self._losses(batch)
        nn.utils.clip_grad_norm_(self.weights.values(), self.h.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = self.h.lr * self._schedule(step)
        update(losses, self._optimizer)
        return losses

    def encode(self, task: str, examples: Examples) -> Tensor:
        """Return features of the trained model."""
        assert examples.inputs is not None
        return call(self.context.model, self._current(), examples.inputs)

    @torch.no_grad()
    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return each task's mean cross entropy."""
        return self._losses(batch)

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the trained weights."""
        result = {name: tensor.detach().clone() for name, tensor in self.experts.pretrained.items()}
        for name, tensor in self.weights.items():
            result[name] = tensor.detach().to(result[name].dtype).clone()
        return result

    def _schedule(self, step: int) -> float:
        if step < self.h.warmup:
            return (step + 1) / self.h.warmup
        rest = max(1, self.context.steps - self.h.warmup)
        return 0.5 * (1 + math.cos(math.pi * (step - self.h.warmup) / rest))

    def _current(self) -> dict[str, Tensor]:
        own = {name: tensor.to(self.experts.layout[name].dtype) for name, tensor in self.weights.items()}
        return {**own, **self._constants}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return each task's loss; with gradients enabled, add their sum's gradient to the weights."""
        losses: dict[str, Tensor] = {}
        for task, examples in batch.items():
            losses[task], self.chunk = self._task(task, examples)
        return losses

    def _task(self, task: str, examples: Examples) -> tuple[Tensor, int | None]:
        kept = {name: None if tensor.grad is None else tensor.grad.clone() for name, tensor in self.weights.items()}

        def compute(size: int) -> Tensor:
            total = torch.zeros(())
            for start in range(0, len(examples), size):
                part = examples.part(start, start + size)
                loss = self.objective(task, self.encode(task, part), part).sum() / len(examples)
                if torch.is_grad_enabled():
                    torch.autograd.backward(loss)
                total = total.to(loss.device) + loss.detach()
            return total

        def undo() -> None:
            for name, tensor in self.weights.items():
                own = kept[name]
                tensor.grad = None if own is None else own.clone()  # memory may run out again

        return in_chunks(compute, len(examples), self.chunk, undo)
