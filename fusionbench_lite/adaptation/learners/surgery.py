"""Adapters on the final features of a frozen merged model (Representation Surgery and its probabilistic form)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fusionbench_lite.adaptation.engine.probe import example_of, widths
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Examples, Procedure, Update
from fusionbench_lite.adaptation.learners.feature_adapters import Adapter
from fusionbench_lite.adaptation.learners.frozen import Frozen, parameters
from fusionbench_lite.models.inputs import Inputs
from fusionbench_lite.models.modes import unmixed
from fusionbench_lite.weights.experts import Experts


class FeatureSurgery(Procedure):
    """Adam on the adapters of all tasks, one update of each task's per batch. What frozen networks say, the features
    of the merged model and of the task's expert, is all that a step reads.

    `grouping`: "together", every task's adapter is updated by its own batch, all at once; "apart", in turn, by one Adam
    that steps all adapters, with zero gradients for the other tasks' (from their first batch on); "shared", in turn on
    one adapter for all tasks. `normalise` scales features to length 1 first.
    """

    reads_inputs = False
    updates_per_batch = True
    differentiates = False

    def __init__(
        self, experts: Experts, base: Mapping[str, Tensor], adapter: Adapter, context: Context, *, lr: float,
        grouping: str, normalise: bool = False,
    ) -> None:
        self.experts = experts
        self.frozen, self.adapter = Frozen(context, experts, base), adapter
        self.lr, self.grouping, self.normalise = lr, grouping, normalise
        self.owners = [""] if grouping == "shared" else self.tasks
        self._weights: dict[str, nn.ParameterList] = {}
        example = example_of(context, "an adapter on the features")
        if example is not None:
            _, width = widths(context.model, self.frozen.base, example, [])
            self._weights = {part: parameters(self._start(part, width)) for part in adapter.parts}
        self.learnables = nn.ModuleDict(self._weights)

    def _start(self, part: str, width: int) -> list[Tensor]:
        """Return a weight of all owners, [T, ...], or of one after the other, [1, ...] each."""
        rows = [self.adapter.start(part, width, owner) for owner in self.owners]
        whole = torch.stack(rows).to(self.frozen.device, self.frozen.dtype)  # [T, ...]
        return [whole] if self.grouping == "together" else [row.clone() for row in torch.split(whole, 1)]

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Adam with betas (0.9, 0.999), eps 1e-8, no weight decay (Kingma and Ba 2015; docs/decisions.md, D1)."""
        self._optimizer = torch.optim.Adam(self.learnables.parameters(), lr=self.lr, fused=True)
        return (self._optimizer,)

    def precomputed(self, task: str, inputs: Inputs) -> Tensor:
        """Return the features of the merged model and of the task's expert, [B, 2, d]."""
        pair = [self.frozen.run(weights, inputs) for weights in (self.frozen.base, self.frozen.expert(task))]
        features = torch.stack(pair, dim=1)  # [B, 2, d]
        return nn.functional.normalize(features, dim=-1) if self.normalise else features

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Update once per batch of the step, and return each task's mean loss."""
        (losses, *others) = [
            self._update(batch, (step, number) if number else (step,), update) for number, batch in enumerate(batches)
        ]
        for more in others:
            losses = {task: losses[task] + loss for task, loss in more.items()}
        return {task: loss / len(batches) for task, loss in losses.items()}

    def _update(self, batch: Batch, key: tuple[int, ...], update: Update) -> dict[str, Tensor]:
        if self.grouping == "together":
            losses = self._differentiate(batch, key, 0)
            update(losses or {self.tasks[0]: self.frozen.zero()}, self._optimizer)
            return losses
        all_losses: dict[str, Tensor] = {}
        for number, task in enumerate(self.tasks):
            group = 0 if self.grouping == "shared" else number
            losses = self._differentiate({task: batch[task]} if task in batch else {}, key, group)
            update(losses or {task: self.frozen.zero()}, self._optimizer)
            all_losses |= losses
        return all_losses

    def _differentiate(self, batch: Batch, key: tuple[int, ...], group: int) -> dict[str, Tensor]:
        """Set the gradients of a group of adapters for the batch, those of the others to zero; return each task's loss.

        Groups whose first batch is still to come have no gradients, so that Adam leaves them alone.
        """
        started = len(self.owners) if any(key) or len(key) > 1 else group + 1
        for weights in self._weights.values():
            for number, parameter in enumerate(weights):
                _clear(parameter, number < started)
        if not batch:
            return {}
        losses, gradients = self._losses(batch, self._noise(batch, key))
        rows = [self.tasks.index(task) for task in batch] if self.grouping == "together" else [0]
        for weights, gradient in zip(self._weights.values(), gradients, strict=True):
            target = weights[group].grad
            assert target is not None
            target[rows] = gradient
        return dict(zip(batch, losses, strict=True))

    def _noise(self, batch: Batch, key: tuple[int, ...]) -> Tensor | None:
        drawn = []
        for task, examples in batch.items():
            noise = self.adapter.noise(task, self._features(examples)[:, 0].shape, key)
            if noise is None:
                return None
            drawn.append(noise.to(self.frozen.device, self.frozen.dtype))
        return pad_sequence(drawn, batch_first=True)

    @torch.no_grad()
    def _losses(self, batch: Batch, noise: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the losses [n] of the n tasks of the batch and the gradients; shorter batches are filled up with zeros."""
        features = pad_sequence([self._features(examples) for examples in batch.values()], batch_first=True)
        merged, expert = features.unbind(2)
        share = 1 / torch.tensor([len(examples) for examples in batch.values()], dtype=features.dtype, device=features.device)
        with unmixed(features.device):
            return self.adapter.differentiate(self._values(list(batch)), merged, expert, share, noise)

    def _features(self, examples: Examples) -> Tensor:
        assert examples.precomputed is not None
        return examples.precomputed.to(self.frozen.dtype)

    def _values(self, tasks: list[str]) -> dict[str, Tensor]:
        """Return the adapters' weights of some tasks, [n, ...]; of one task where they are updated in turn."""
        rows = [self.tasks.index(task) for task in tasks]
        if self.grouping != "together":
            group = 0 if self.grouping == "shared" else rows[0]
            return {part: weights[group] for part, weights in self._weights.items()}
        every = tasks == self.tasks
        return {part: weights[0] if every else weights[0][rows] for part, weights in self._weights.items()}

    def encode(self, task: str, examples: Examples) -> Tensor:
        """Return the adapted features; those of the merged model where no step was taken and no batch seen."""
        features = self._features(examples)[:, 0]
        if self._weights:
            with unmixed(features.device):
                features = self.adapter.adapt(self._values([task]), features[None])[0]
        assert examples.precomputed is not None
        return features.to(examples.precomputed.dtype)

    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return each task's loss, without noise."""
        return {task: self._losses({task: examples}, None)[0][0] for task, examples in batch.items()}

    def learned(self) -> dict[str, Tensor]:
        """Return the weights of every task's adapter, `TASK/PART`; `/PART` of one for all."""
        tensors: dict[str, Tensor] = {}
        for part, group in self._weights.items():
            whole = torch.cat([value.detach().cpu() for value in group])
            tensors |= {f"{owner}/{part}": row.clone() for owner, row in zip(self.owners, whole, strict=True)}
        return tensors

    @torch.no_grad()
    def restore(self, learned: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> None:
        """Take back what `learned` returned."""
        for part, group in self._weights.items():
            whole = torch.stack([learned[f"{owner}/{part}"] for owner in self.owners])
            for value, rows in zip(group, torch.split(whole, [len(value) for value in group]), strict=True):
                value.copy_(rows)

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the weights that the adapters sit on."""
        return self.frozen.state_dict()


def _clear(parameter: Tensor, started: bool) -> None:
    """Make a gradient zero, without new memory where there is one, or none."""
    if not started:
        parameter.grad = None
    elif parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    else:
        parameter.grad.zero_()
