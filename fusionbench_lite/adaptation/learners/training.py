"""Ordinary training of all weights with labels, as a procedure: the reference that merging is compared with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.core import Segment, call, in_groups, pieces_of
from fusionbench_lite.adaptation.engine.objectives import objective
from fusionbench_lite.adaptation.engine.parametrisation import check_range
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Examples, Procedure, Update
from fusionbench_lite.models.inputs import Inputs
from fusionbench_lite.weights.experts import Experts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """How weights are trained.

    `lr`: the highest learning rate. `weight_decay`: decoupled with AdamW, part of the gradient with Adam. `warmup`: steps
    of linear growth. `clip`: the largest norm of the gradient, None for any. `optimizer`: "adamw" or "adam". `schedule`:
    "cosine" or "linear", to 0 after the last step, or "constant". `frozen`: tensors that keep their pretrained values.
    """

    lr: float
    weight_decay: float = 0.0
    warmup: int = 0
    clip: float | None = None
    optimizer: str = "adamw"
    schedule: str = "cosine"
    frozen: tuple[str, ...] = ()

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`."""
        if step < self.warmup:
            return self.lr * ((step + 1) / self.warmup)
        if self.schedule == "constant":
            return self.lr
        rest = max(1, steps - self.warmup)
        if self.schedule == "linear":
            return self.lr * ((steps - step) / rest)
        return self.lr * (0.5 * (1 + math.cos(math.pi * (step - self.warmup) / rest)))

    def optimizer_of(self, parameters: Any, *, fused: bool | None = None) -> torch.optim.Optimizer:
        """Return the optimizer of parameters or groups of them; a group may have a weight decay of its own. `fused` is torch's."""
        kind: type[torch.optim.Optimizer] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[self.optimizer]
        return kind(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=fused)  # type: ignore[call-arg]


class Training(Procedure):
    """Descent on every floating-point tensor that the model reads, from the pretrained weights."""

    reads_labels = True
    split = "train"

    def __init__(self, experts: Experts, course: Course, context: Context) -> None:
        self.experts, self.course, self.context, self.chunk = experts, course, context, context.chunk
        of_model = context.model.state_dict()
        names = [name for name in experts.names if name in of_model and name not in course.frozen]
        self.weights = {name: nn.Parameter(experts.base(name).view(experts.specs[name].shape).clone()) for name in names}
        self.learnables = nn.ParameterDict({name.replace(".", "/"): tensor for name, tensor in self.weights.items()})
        self.objective = objective("cross_entropy", context.heads)
        fixed = [name for name in experts.specs if name in of_model and name not in self.weights]
        self._constants = {name: experts.pretrained[name] for name in fixed}

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The course's optimizer, whose learning rate `step` sets."""
        self._optimizer = self.course.optimizer_of(self.weights.values())
        return (self._optimizer,)

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Do one step of training."""
        (batch,) = batches
        self._optimizer.zero_grad(set_to_none=True)
        losses = self._losses(batch)
        for group in self._optimizer.param_groups:
            group["lr"] = self.course.rate(step, self.context.steps)
        update(losses, self._optimizer, self.course.clip)
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
            check_range(name, tensor.detach(), result[name])
        return result

    def _current(self) -> dict[str, Tensor]:
        current = {name: tensor.to(self.experts.specs[name].dtype) for name, tensor in self.weights.items()}
        return {**current, **self._constants}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return each task's loss; with gradients enabled, add their sum's gradient to the weights.

        Tasks whose inputs have one shape run as one forward pass.
        """

        def compute(inputs: Inputs, segments: list[Segment], size: int) -> dict[str, Tensor]:
            return self._chunks(Examples(inputs), segments, size, batch)

        losses, self.chunk = in_groups(compute, batch, self.chunk, self.weights.values())
        return losses

    def _chunks(self, whole: Examples, segments: list[Segment], size: int, batch: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for start in range(0, len(whole), size):
            features = self.encode("", whole.part(start, start + size))
            total = torch.zeros((), device=features.device)
            for task, rows, examples, count in pieces_of(segments, start, size):
                loss = self.objective(task, features[rows], batch[task].part(examples.start, examples.stop)).sum() / count
                losses[task] = loss.detach() + losses.get(task, 0.0)
                total = total + loss
            if torch.is_grad_enabled():
                torch.autograd.backward(total, inputs=list(self.weights.values()))  # heads get no gradient
        return losses
