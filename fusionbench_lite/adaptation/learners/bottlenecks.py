"""Adapters of a task behind every block of a model, or on its features, and their distance to the task's expert."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.draws import normal
from fusionbench_lite.adaptation.engine.core import call
from fusionbench_lite.adaptation.engine.probe import call_hooked, widths
from fusionbench_lite.adaptation.engine.procedure import Examples
from fusionbench_lite.adaptation.learners.frozen import Frozen, parameters
from fusionbench_lite.models.blocks import blocks
from fusionbench_lite.models.inputs import Inputs

INITIAL = 1e-3
"""Standard deviation of the weights at the start."""

PARTS = ("down", "up", "down_bias", "up_bias")

Phi = list[Tensor]
"""The weights φ of a task's adapters: D [rank, d], U [d, rank], their biases, then those of the next adapter."""


class Bottlenecks(nn.Module):
    """h - (U relu(D h + d) + u) for every task, on each token that leaves a block ("blocks") or on the features ("final").

    `parts[part][number]` holds the weights of all tasks, [T, ...]; nothing with "none". `loss` is "mse", the mean square of
    the difference to the expert's features, or "norm", the mean over examples of its norm. The loss compares what the model
    puts out in the context `compared`, its features by default.
    """

    def __init__(
        self, frozen: Frozen, place: str, rank: int, loss: str, seed: int,
        compared: contextlib.AbstractContextManager[None] | None = None,
    ) -> None:
        super().__init__()
        self.compared = contextlib.nullcontext() if compared is None else compared
        self.frozen, self.place, self.rank, self.kind, self.seed = frozen, place, rank, loss, seed
        self.tasks = frozen.experts.tasks
        self.blocks = tuple(blocks(frozen.model)) if place == "blocks" else ()  # a tuple: they are no submodules
        self.parts = nn.ModuleDict()

    def build(self, example: Inputs) -> None:
        """Make the adapters, as wide as the states of an example; nothing where they are there."""
        if self.place == "none" or len(self.parts):
            return
        inner, final = widths(self.frozen.model, self.frozen.base, example, self.blocks)
        sides = inner if self.blocks else [final]
        for part in PARTS:
            starts = (
                torch.stack([self._start(part, width, task, number) for task in self.tasks])  # [T, ...]
                for number, width in enumerate(sides)
            )
            self.parts[part] = parameters(start.to(self.frozen.device, self.frozen.dtype) for start in starts)

    def _start(self, part: str, width: int, task: str, number: int) -> Tensor:
        if part.endswith("bias"):
            return torch.zeros(self.rank if part == "down_bias" else width, dtype=torch.float64)
        shape = (self.rank, width) if part == "down" else (width, self.rank)
        return INITIAL * normal(shape, self.seed, "metamerging", task, number, part).double()

    def _stacked(self) -> list[nn.Parameter]:
        """Return the weights of all tasks in the order of `Phi`."""
        groups = [list(self.parts[part].parameters()) for part in PARTS] if len(self.parts) else []
        return list(itertools.chain.from_iterable(zip(*groups, strict=True)))

    def of(self, task: str) -> Phi:
        """Return a task's φ as new leaves."""
        row = self.tasks.index(task)
        return [parameter.detach()[row].clone().requires_grad_() for parameter in self._stacked()]

    def clear(self) -> None:
        """Set all gradients to 0."""
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def accumulate(self, task: str, weights: Mapping[str, Tensor], examples: Examples, size: int) -> Tensor:
        """Return a task's loss, and add its gradient to that of the task's weights."""
        phi = self.of(task)
        loss = self.descend(weights, phi, examples, size, phi)
        for parameter, part in zip(self._stacked(), phi, strict=True):
            if parameter.grad is not None and part.grad is not None:
                parameter.grad[self.tasks.index(task)] += part.grad
        return loss

    def descend(
        self, weights: Mapping[str, Tensor], phi: Phi, examples: Examples, size: int, leaves: list[Tensor]
    ) -> Tensor:
        """Return the loss with adapters φ, and add its gradient to that of the leaves; `size` examples in a forward pass."""
        total = self.frozen.zero()
        for part, share in portions(examples, size):
            loss = self.loss(weights, phi, part) * share
            loss.backward(inputs=leaves)  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    def loss(self, weights: Mapping[str, Tensor], phi: Phi, examples: Examples) -> Tensor:
        """Return the distance between the adapted features and the expert's, which are what is known of examples."""
        assert examples.inputs is not None
        assert examples.precomputed is not None
        with self.compared:
            features = self.features(weights, phi, examples.inputs)
        difference = features - examples.precomputed.to(features.dtype)
        return difference.square().mean() if self.kind == "mse" else torch.linalg.vector_norm(difference, dim=-1).mean()

    def features(self, weights: Mapping[str, Tensor], phi: Phi, inputs: Inputs) -> Tensor:
        """Return the features of the model with these weights and adapters φ."""

        def adapt(states: Tensor, number: int) -> Tensor:
            down, up, down_bias, up_bias = (part.to(states.dtype) for part in phi[4 * number : 4 * number + 4])
            inner = torch.relu(nn.functional.linear(states, down, down_bias))
            return states - nn.functional.linear(inner, up, up_bias)

        if self.blocks:
            return call_hooked(self.frozen.model, weights, inputs, self.blocks, adapt)
        plain = call(self.frozen.model, weights, inputs)
        return adapt(plain, 0) if phi else plain

    def named(self) -> dict[str, Tensor]:
        """Return copies of the weights, `TASK/NUMBER/{down,up,down_bias,up_bias}`."""
        stacked = [parameter.detach().cpu() for parameter in self._stacked()]
        return {
            f"{task}/{place // 4}/{PARTS[place % 4]}": values[row].clone()
            for row, task in enumerate(self.tasks) for place, values in enumerate(stacked)
        }

    def accept(self, state: dict[str, Any], prefix: str, attribute: str) -> None:
        """Put the weights of a state dict that `named` returned where this module, under the key `attribute`, looks for them."""
        for part, group in self.parts.items():
            for number in range(len(list(group.parameters()))):
                names = [f"{prefix}{task}/{number}/{part}" for task in self.tasks]
                if all(name in state for name in names):
                    state[f"{prefix}{attribute}.parts.{part}.{number}"] = torch.stack([state.pop(name) for name in names])


def portions(examples: Examples, size: int) -> Iterator[tuple[Examples, float]]:
    """Yield the examples in parts of at most `size`, with the share of all that a part is."""
    for start in range(0, len(examples), size):
        part = examples.part(start, start + size)
        yield part, len(part) / len(examples)
