"""Adapters behind every block of a frozen merged model and on its features (SurgeryV2)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.draws import uniform
from fusionbench_lite.adaptation.engine.core import Segment, in_groups, pieces_of
from fusionbench_lite.adaptation.engine.probe import call_hooked, example_of, states, token_mean, widths
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Examples, Procedure, Update
from fusionbench_lite.adaptation.learners.frozen import Frozen, linear_start, parameters
from fusionbench_lite.models.blocks import blocks
from fusionbench_lite.models.inputs import Inputs, size_of
from fusionbench_lite.weights.experts import Experts


class BlockSurgery(Procedure):
    """h - U relu(D h) on every token that leaves a block, which the next block reads, and on the features.

    Block `number` of L counts from 0, the features are number L; `learnables.down[number]` is [T, rank, d],
    `learnables.up[number]` [T, d, rank]. A task's loss is the sum over numbers of the mean distance between the adapted
    hidden states' mean over tokens and the expert's. Adam takes one step per batch of every task.
    """

    updates_per_batch = True

    def __init__(
        self, experts: Experts, base: Mapping[str, Tensor], context: Context, *, rank: int, lr: float, seed: int
    ) -> None:
        self.experts = experts
        self.frozen = Frozen(context, experts, base)
        self.blocks = blocks(context.model)
        self.rank, self.lr, self.seed = rank, lr, seed
        self._weights: dict[str, nn.ParameterList] = {}
        example = example_of(context, "surgery_v2")
        if example is not None:
            inner, final = widths(context.model, self.frozen.base, example, self.blocks)
            sides = [*inner, final]
            device, dtype = self.frozen.device, self.frozen.dtype
            down = (self._start(number, width).to(device, dtype) for number, width in enumerate(sides))
            up = (torch.zeros(len(experts), width, rank, device=device, dtype=dtype) for width in sides)
            self._weights = {"down": parameters(down), "up": parameters(up)}
        self.learnables = nn.ModuleDict(self._weights)

    def _start(self, number: int, width: int) -> Tensor:
        """Return D of every task, [T, rank, d]."""
        shape = (self.rank, width)
        return torch.stack([
            linear_start(uniform(shape, self.seed, "surgery_v2", task, number, "down")) for task in self.tasks
        ])

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Adam with betas (0.9, 0.999), eps 1e-8, no weight decay (Kingma and Ba 2015; docs/decisions.md, D1)."""
        self._optimizer = torch.optim.Adam(self.learnables.parameters(), lr=self.lr)
        return (self._optimizer,)

    def precomputed(self, task: str, inputs: Inputs) -> Tensor:
        """Return the expert's means over tokens behind every block and its features, side by side [B, Σ d]."""

        def everything(weights: Mapping[str, Tensor], part: Inputs) -> Tensor:
            outputs, features = states(self.frozen.model, weights, part, self.blocks)
            return torch.cat([*map(token_mean, outputs), features], dim=1)  # [B, Σ d]

        return self.frozen.run(self.frozen.expert(task), inputs, everything)

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Update once per batch of the step, and return each task's mean loss."""
        total: dict[str, Tensor] = {}
        for batch in batches:
            for parameter in self.learnables.parameters():
                parameter.grad = torch.zeros_like(parameter)
            losses = self._accumulate(batch) or {self.tasks[0]: self.frozen.zero()}
            update(losses, self._optimizer)
            total = {task: total.get(task, 0) + loss / len(batches) for task, loss in losses.items()}
        return total

    @torch.no_grad()
    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return each task's loss."""
        return self._accumulate(batch)

    def _accumulate(self, batch: Batch) -> dict[str, Tensor]:
        """Return each task's loss; where gradients are recorded, add those of the sum to the learnables'."""

        def compute(inputs: Inputs, segments: list[Segment], size: int) -> dict[str, Tensor]:
            return self._chunks(inputs, segments, size, batch)

        losses, self.frozen.chunk = in_groups(compute, batch, self.frozen.chunk, self.learnables.parameters())
        return losses

    def _chunks(self, inputs: Inputs, segments: list[Segment], size: int, batch: Batch) -> dict[str, Tensor]:
        losses = {task: self.frozen.zero() for task, _, _ in segments}
        whole = Examples(inputs)
        for start in range(0, len(whole), size):
            part = whole if size >= len(whole) else whole.part(start, start + size)
            assert part.inputs is not None
            rows = {task: rows_of_task for task, _, rows_of_task, _ in pieces_of(segments, start, size)}
            sizes = [rows_of_task.stop - rows_of_task.start for rows_of_task in rows.values()]
            targets = torch.cat([_targets(batch[task])[rows_of_task] for task, rows_of_task in rows.items()])  # [B, Σ d]
            each = self._distances(self._adapted(part.inputs, list(zip(rows, sizes, strict=True))), targets)
            total: Any = 0
            for task, distances in zip(rows, torch.split(each, sizes), strict=True):
                loss = distances.sum() / len(batch[task])
                losses[task] = losses[task] + loss.detach()
                total = total + loss
            if torch.is_grad_enabled():
                total.backward(inputs=list(self.learnables.parameters()))
        return losses

    def _distances(self, outputs: list[Tensor], of_experts: Tensor) -> Tensor:
        """Return each example's loss [B]: Σ over blocks and the features of the mean |difference| to the expert's."""
        targets = torch.split(of_experts.to(self.frozen.dtype), [output.shape[-1] for output in outputs], dim=1)
        pairs = zip(outputs, targets, strict=True)
        return torch.stack([(output.to(target.dtype) - target).abs().mean(1) for output, target in pairs]).sum(0)

    def _adapted(self, inputs: Inputs, sizes: list[tuple[str, int]]) -> list[Tensor]:
        """Return the adapted hidden states' means over tokens [B, d] behind every block, and the adapted features.

        `sizes` lists the tasks of the inputs, in order, and their numbers of examples.
        """
        means: list[Tensor] = []

        def adapt(hidden: Tensor, number: int) -> Tensor:
            adapted = self._adapt(hidden, number, sizes)
            means.append(token_mean(adapted))
            return adapted

        features = call_hooked(self.frozen.model, self.frozen.base, inputs, self.blocks, adapt)
        return [*means, self._adapt(features, len(self.blocks), sizes)]

    def _adapt(self, hidden: Tensor, number: int, sizes: list[tuple[str, int]]) -> Tensor:
        """Return h - U relu(D h), with the adapters of each example's task."""
        if not self._weights:
            return hidden
        down, up = (self._weights[part][number] for part in ("down", "up"))
        wide = hidden.to(self.frozen.dtype)
        rows = [self.tasks.index(task) for task, _ in sizes]
        if len({size for _, size in sizes}) == 1:
            tokens = wide.reshape(len(sizes), -1, wide.shape[-1])  # [T, B·N, d]
            every = rows == list(range(len(self.tasks)))
            removed = torch.relu(tokens @ (down if every else down[rows]).mT) @ (up if every else up[rows]).mT
            removed = removed.reshape(wide.shape)  # [T·B, N, d]
        else:
            parts = zip(rows, torch.split(wide, [size for _, size in sizes]), strict=True)
            removed = torch.cat([torch.relu(part @ down[row].mT) @ up[row].mT for row, part in parts])
        adapted: Tensor = wide - removed
        return adapted.to(hidden.dtype)

    def encode(self, task: str, examples: Examples) -> Tensor:
        """Return the adapted features; those of the merged model where no step was taken and no batch seen."""
        assert examples.inputs is not None

        def features(weights: Mapping[str, Tensor], part: Inputs) -> Tensor:
            return self._adapted(part, [(task, size_of(part))])[-1]

        return self.frozen.run(self.frozen.base, examples.inputs, features)

    def learned(self) -> dict[str, Tensor]:
        """Return the weights of every task's adapters, `TASK/NUMBER/down` and `TASK/NUMBER/up`."""
        copies = {part: [value.detach().cpu() for value in group] for part, group in self._weights.items()}
        numbers = range(len(self.blocks) + 1) if copies else ()
        return {
            f"{task}/{number}/{part}": copies[part][number][row].clone()
            for (row, task), number, part in itertools.product(enumerate(self.tasks), numbers, copies)
        }

    @torch.no_grad()
    def restore(self, learned: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> None:
        """Take back what `learned` returned."""
        for part, group in self._weights.items():
            for number, value in enumerate(group):
                value.copy_(torch.stack([learned[f"{task}/{number}/{part}"] for task in self.tasks]))

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the weights that the adapters sit on."""
        return self.frozen.state_dict()


def _targets(examples: Examples) -> Tensor:
    assert examples.precomputed is not None
    return examples.precomputed
