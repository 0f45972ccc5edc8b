"""Twin-Merging at work: a router over frozen features mixes low-rank experts for every example."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.draws import uniform
from fusionbench_lite.adaptation.engine.core import in_chunks, restoring
from fusionbench_lite.adaptation.engine.objectives import objective
from fusionbench_lite.adaptation.engine.probe import states, token_mean
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Examples, Procedure, Update
from fusionbench_lite.adaptation.learners.frozen import Frozen
from fusionbench_lite.adaptation.learners.lazy_weights import LazyModel, LowRank, Vectors, Whole
from fusionbench_lite.base.processes import gathered
from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.blocks import blocks
from fusionbench_lite.models.inputs import Inputs
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import rank_of, top_singular

SLOPE = 0.01
"""Of the router's leaky ReLU below 0."""
SAMPLES = 5500
"""Training examples of a task that the router reads at most, as released."""


class Router(nn.Module):
    """d -> 2d -> 2d -> T: linear, batch normalisation, leaky ReLU and dropout twice, then linear."""

    def __init__(self, width: int, tasks: int, frozen: Frozen, *, dropout: float, seed: int) -> None:
        super().__init__()
        self.seed, self.dropout = seed, dropout
        sizes = [width, 2 * width, 2 * width, tasks]
        self.linear = nn.ModuleList()
        self.norm = nn.ModuleList(nn.BatchNorm1d(size, device=frozen.device, dtype=frozen.dtype) for size in sizes[1:3])
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            linear = nn.Linear(fan_in, fan_out, device="meta")
            for part, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,))):
                start = (2 * uniform(shape, seed, "twin_merging", layer, part).double() - 1) / fan_in**0.5
                setattr(linear, part, nn.Parameter(start.to(frozen.device, frozen.dtype)))
            self.linear.append(linear)

    def forward(self, features: Tensor, step: int | None) -> Tensor:
        """Return logits [B, T] of features [B, d]; with a step number by the batch's statistics and with dropout."""
        first, second, last = (cast(nn.Linear, layer) for layer in self.linear)
        hidden = features.to(last.weight.dtype)
        for layer, (linear, norm) in enumerate(zip((first, second), self.norm, strict=True)):
            norm.train(step is not None)
            # Normalisation takes a shift out again: the gradient of the bias is 0, and Adam would follow its rounding.
            hidden = norm(nn.functional.linear(hidden, linear.weight, linear.bias.detach()))
            hidden = nn.functional.leaky_relu(hidden, SLOPE)
            if step is not None and self.dropout:
                draw = uniform(hidden.shape, self.seed, "twin_merging", "dropout", layer, step).to(hidden.device)
                hidden = hidden * (draw >= self.dropout) / (1 - self.dropout)
        logits: Tensor = last(hidden)
        return logits


class Twin(Procedure):
    """Adam on the router, by the numbers of the tasks or by the entropy of the mixture's predictions.

    The router reads what θ*, the merged model, says of an example: the token mean of its last block's output. Where
    processes share the tasks, each routes the examples of all, so that statistics and dropout are those of one process.
    `of_tasks`: it learns the numbers of the tasks, on training examples. `vectors`: the v_t, where they are known already.
    """

    def __init__(
        self, experts: Experts, base: Mapping[str, Tensor], context: Context, *, rank_ratio: float, of_tasks: bool, lr: float,
        dropout: float, seed: int, vectors: Mapping[str, Vectors] | None = None,
    ) -> None:
        self.experts, self.rank_ratio, self.of_tasks, self.lr = experts, rank_ratio, of_tasks, lr
        self.split, self.most = ("train", SAMPLES) if of_tasks else ("test", None)
        self.differentiates = not of_tasks
        self.frozen = Frozen(context, experts, base)
        if vectors is None:
            vectors = {name: twin for name in self.frozen.base if (twin := self._twin(name, base[name])) is not None}
        self.vectors = vectors
        self.mixture = LazyModel(context.model, self.frozen.base, vectors)
        self.chunk = context.chunk
        self.objective = objective("entropy", context.heads)
        self._last = _last_block(context.model)
        self._router = functools.partial(Router, tasks=len(self.tasks), frozen=self.frozen, dropout=dropout, seed=seed)
        self.learnables: nn.Module = nn.Module()
        if context.example is not None:
            one = Examples(context.example).part(0, 1).inputs
            assert one is not None
            self.precomputed(experts.tasks[0], one)
        elif context.steps:
            raise MergeError("twin_merging finds the width of its router by running a batch, and there is none: add batches")

    def _twin(self, name: str, base: Tensor) -> Vectors | None:
        """Return v_t of all tasks: matrices by their leading singular components, other tensors whole, biases not at all."""
        if name not in self.experts.names or name.endswith("bias"):
            return None
        differences = self.experts.stack(name).sub_(base.to(self.experts.work_dtype(name)))
        if differences.dim() != 3:
            return Whole(differences.to(self.frozen.device))
        rank = rank_of(self.rank_ratio, min(base.shape))
        if rank == 0:
            return None
        left, right = [], []
        for task, difference in zip(self.tasks, differences, strict=True):
            first, values, second = top_singular(difference, rank, f"{name} of {task}")
            left.append(first * values)
            right.append(second)
        sides = [side.to(self.frozen.device, differences.dtype) for side in (torch.cat(left, 1), torch.cat(right))]
        return LowRank(sides[0], sides[1], len(self.tasks))

    def precomputed(self, task: str, inputs: Inputs) -> Tensor:
        """Return what the router reads, [B, d]; the first call makes the router, whose width that is."""
        features = self.frozen.run(self.frozen.base, inputs, self._summary)
        if not isinstance(self.learnables, Router):
            self.learnables = self._router(features.shape[-1])
        return features

    def _summary(self, weights: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        if self._last is None:
            return self.frozen.features(weights, inputs)
        (seen,), _ = states(self.frozen.model, weights, inputs, [self._last])
        if seen.dim() not in (2, 3):
            raise MergeError(
                f"the last block of {type(self.frozen.model).__name__} returns {tuple(seen.shape)}, the router of twin_merging "
                f"needs hidden states [{len(seen)}, N, d] or [{len(seen)}, d]: choose a method without a router"
            )
        return token_mean(seen)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Adam on the router."""
        self._optimizer = torch.optim.Adam(self.learnables.parameters(), lr=self.lr)
        return (self._optimizer,)

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Do one step on the examples of all tasks."""
        (batch,) = batches
        for parameter in self.learnables.parameters():
            parameter.grad = torch.zeros_like(parameter)
        logits, rows_of = self._logits(batch, step)
        if self.of_tasks:
            losses = self._of_tasks(logits, rows_of)
            if losses:
                torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        else:
            gates = torch.softmax(logits, dim=-1)
            leaf = gates.detach().requires_grad_()
            losses = {task: self._entropy(task, batch[task], leaf, rows) for task, rows in rows_of.items()}
            if leaf.grad is not None:
                gates.backward(leaf.grad)  # type: ignore[no-untyped-call]
        losses = {task: loss.detach() for task, loss in losses.items()} or {self.tasks[0]: self.frozen.zero()}
        update(losses, self._optimizer)
        return losses

    @torch.no_grad()
    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return each task's loss with the router as it is in evaluation."""
        logits, rows_of = self._logits(batch, None)
        if self.of_tasks:
            return self._of_tasks(logits, rows_of)
        gates = torch.softmax(logits, dim=-1)
        return {task: self._entropy(task, batch[task], gates, rows) for task, rows in rows_of.items()}

    def _logits(self, batch: Batch, step: int | None) -> tuple[Tensor, dict[str, slice]]:
        """Return the router's logits for the examples of all tasks in order, and the rows of this process's tasks."""
        precomputed = {task: examples.precomputed for task, examples in batch.items() if examples.precomputed is not None}
        features = gathered(precomputed, Tensor.cpu)
        present = [task for task in self.tasks if task in features]
        rows, start = {}, 0
        for task in present:
            rows[task] = slice(start, start + len(features[task]))
            start += len(features[task])
        if step is not None and start < 2:
            raise MergeError(f"a step has {start} example: batch normalisation in the router needs 2 or more: add examples")
        rows_of = {task: rows[task] for task in present if task in batch}
        like = self.frozen.device
        return self.learnables(torch.cat([features[task].to(like) for task in present]), step), rows_of

    def _of_tasks(self, logits: Tensor, rows_of: Mapping[str, slice]) -> dict[str, Tensor]:
        """Return the parts of the mean cross entropy with the numbers of the tasks."""
        log_probabilities = torch.log_softmax(logits, dim=-1)
        return {
            task: -log_probabilities[rows, self.tasks.index(task)].sum() / len(logits) for task, rows in rows_of.items()
        }

    def _entropy(self, task: str, examples: Examples, gates: Tensor, rows: slice) -> Tensor:
        """Return the mean entropy of a task's examples; adds its gradient to that of the gates where they take one."""
        inputs = examples.inputs
        assert inputs is not None

        def compute(size: int) -> Tensor:
            total = gates.new_zeros(())
            for start in range(0, len(examples), size):
                part = examples.part(start, start + size)
                assert part.inputs is not None
                features = self.mixture.encode(part.inputs, gates[rows][start : start + size])
                loss = self.objective(task, features, part).sum() / len(examples)
                if gates.requires_grad:
                    loss.backward(inputs=[gates])  # type: ignore[no-untyped-call]
                total = total + loss.detach()
            return total

        most = self.mixture.fitting(inputs, gates)
        losses, self.chunk = in_chunks(compute, len(examples), min(self.chunk or most, most), restoring([gates]))
        return losses

    def encode(self, task: str, examples: Examples) -> Tensor:
        """Return features of the mixtures, the same for every task."""
        assert examples.inputs is not None
        precomputed = self.precomputed(task, examples.inputs) if examples.precomputed is None else examples.precomputed
        with torch.no_grad():
            gates = torch.softmax(self.learnables(precomputed, None), dim=-1)
            return self.mixture.encode(examples.inputs, gates, self.chunk)

    def learned(self) -> dict[str, Tensor]:
        """Return the router by layer: `<layer>/{weight,bias,norm_weight,norm_bias}`."""
        if not isinstance(self.learnables, Router):
            return {}
        parts = {f"{number}/": module for number, module in enumerate(self.learnables.linear)}
        parts |= {f"{number}/norm_": module for number, module in enumerate(self.learnables.norm)}
        return {
            f"{prefix}{name}": parameter.detach().cpu().clone()
            for prefix, module in parts.items() for name, parameter in module.named_parameters()
        }

    def extras(self) -> dict[str, Tensor]:
        """Return the router's running statistics, `<layer>/{running_mean,running_var}`."""
        if not isinstance(self.learnables, Router):
            return {}
        return {
            f"{number}/{name}": tensor.detach().cpu().clone()
            for number, norm in enumerate(self.learnables.norm) for name, tensor in norm.named_buffers() if tensor.dim()
        }

    @torch.no_grad()
    def restore(self, learned: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> None:
        """Take back what `learned` and `extras` returned; the router normalises by the statistics among them."""
        if not isinstance(self.learnables, Router):
            return
        named = {f"{number}/": module for number, module in enumerate(self.learnables.linear)}
        named |= {f"{number}/norm_": module for number, module in enumerate(self.learnables.norm)}
        for prefix, module in named.items():
            for name, parameter in module.named_parameters():
                parameter.copy_(learned[f"{prefix}{name}"])
        for number, norm in enumerate(self.learnables.norm):
            for name in ("running_mean", "running_var"):
                getattr(norm, name).copy_(extras[f"{number}/{name}"])

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return θ*."""
        return self.frozen.state_dict()


def _last_block(model: nn.Module) -> nn.Module | None:
    try:
        return blocks(model)[-1]
    except MergeError:
        return None
