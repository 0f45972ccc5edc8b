"""A loss and its gradient at the merged weights, for the batches of all tasks at once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.dropout import Key, dropping
from fusionbench_lite.adaptation.engine.foreign import features_of, running
from fusionbench_lite.adaptation.engine.norms import differentiable
from fusionbench_lite.adaptation.engine.objectives import EntropyOfMean, Objective
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Examples
from fusionbench_lite.adaptation.engine.ties import aliases, distinct
from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.inputs import Inputs, plain, size_of
from fusionbench_lite.models.modes import evaluating

Segment = tuple[str, int, int]
"""A task and its rows, first and one past the last, in inputs of several tasks."""

Piece = tuple[str, slice, slice, int]
"""A task, its rows in a forward pass, the same rows among its own examples, and how many it has."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def call(model: nn.Module, weights: Mapping[str, Tensor], inputs: Inputs, noise: Key | None = None) -> Tensor:
    """Return the model's features with these weights in place of its own, in evaluation mode, or with dropout drawn by `noise`.

    A tensor that the model knows by several names takes the weight of the first that is listed. Modes of the modules
    are put back. Raises MergeError where the model does not run on the inputs, or returns no features of them.
    """
    arguments: tuple[Any, ...] = () if isinstance(inputs, Mapping) else (inputs,)
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    mode = evaluating(model) if noise is None else dropping(model, noise)
    with mode, running(model, inputs, weights), differentiable(weights):
        output = torch.func.functional_call(model, distinct(model, weights), arguments, named)
    return features_of(output, model, inputs)


class MergedEncoder:
    """A model evaluated at merged weights that are leaves of the autograd graph.

    The module's own parameters are never touched: its forward runs with the leaves in their place, in evaluation mode.
    `chunk` bounds the number of examples in one forward pass; it halves when memory runs out. A tensor that the model
    knows by several names has one leaf, and the names one coefficient row and one merge. Leaves are where the model is.
    """

    def __init__(self, context: Context, parametrisation: Parametrisation) -> None:
        self.model = context.model
        self.parametrisation = parametrisation
        self.chunk = context.chunk
        of_model = self.model.state_dict()
        experts = parametrisation.experts
        follow = aliases(self.model, experts)
        parametrisation.tie(follow)
        self.leaves = {
            name: torch.empty(
                experts.specs[name].shape, dtype=experts.specs[name].dtype, device=of_model[name].device, requires_grad=True
            )
            for name in parametrisation.parts
            if name in of_model and name not in follow
        }
        self._constants = {
            name: plain(experts.pretrained[name]).to(of_model[name].device) for name in experts.specs
            if name in of_model and name not in self.leaves and name not in follow
        }
        experts.drop_held()

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights of the merged model by name: leaves, and tensors that are not merged."""
        return {**self.leaves, **self._constants}

    def refresh(self) -> None:
        """Merge with the present φ into the leaves and forget their gradients."""
        for leaf in self.leaves.values():
            leaf.grad = None
        self.parametrisation.write({name: leaf.detach() for name, leaf in self.leaves.items()})

    def encode(self, inputs: Inputs) -> Tensor:
        """Return features of the merged model."""
        return call(self.model, self.weights, inputs)

    def accumulate(
        self, batch: Batch, objective: Objective, weights: Mapping[str, float] | None = None, noise: Key | None = None
    ) -> dict[str, Tensor]:
        """Add ∂/∂W Σ_t w_t loss_t of the batch to the leaves' gradients; return each task's loss, a mean over examples.

        The weights w are 1 unless given. Tasks whose inputs have one shape run as one concatenated forward pass. With dropout,
        drawn by `noise`, every task runs by itself: what it drops does not depend on who runs with it.
        """

        def compute(inputs: Inputs, segments: list[Segment], size: int) -> dict[str, Tensor]:
            return self._chunks(inputs, segments, size, batch, objective, weights, noise)

        losses: dict[str, Tensor] = {}
        for group in [batch] if noise is None else [{task: examples} for task, examples in batch.items()]:
            some, self.chunk = in_groups(compute, group, self.chunk, self.leaves.values())
            losses |= some
        return losses

    @torch.no_grad()
    def losses(self, batch: Batch, objective: Objective) -> dict[str, Tensor]:
        """Return each task's loss without gradients."""
        return self.accumulate(batch, objective)

    def gradients(self) -> dict[str, Tensor]:
        """Return G = ∂L/∂W, in the work dtype, of every merged tensor that the forward pass read."""
        parts = self.parametrisation.parts
        return {
            name: leaf.grad.to(parts[name].origin.dtype) for name, leaf in self.leaves.items() if leaf.grad is not None
        }

    def _chunks(
        self, inputs: Inputs, segments: list[Segment], size: int, batch: Batch, objective: Objective,
        weights: Mapping[str, float] | None, noise: Key | None,
    ) -> dict[str, Tensor]:
        device = next(iter(inputs.values())).device if isinstance(inputs, Mapping) else inputs.device
        losses = {task: torch.zeros((), device=device) for task, _, _ in segments}
        if isinstance(objective, EntropyOfMean) and size < size_of(inputs):
            objective = objective.around(self._mean_logits(inputs, segments, size, objective, noise))
        for features, pieces in self._forward(inputs, segments, size, noise):
            total: Any = 0
            for task, rows, examples, count in pieces:
                loss = objective(task, features[rows], batch[task].part(examples.start, examples.stop)).sum() / count
                losses[task] = losses[task] + loss.detach()
                total = total + (loss if weights is None else weights[task] * loss)
            if torch.is_grad_enabled():
                total.backward(inputs=list(self.leaves.values()))
        return losses

    @torch.no_grad()
    def _mean_logits(
        self, inputs: Inputs, segments: list[Segment], size: int, objective: EntropyOfMean, noise: Key | None
    ) -> dict[str, Tensor]:
        means: dict[str, Tensor] = {}
        for features, pieces in self._forward(inputs, segments, size, noise):
            for task, rows, _, count in pieces:
                share = objective.logits(task, features[rows]).sum(0) / count
                means[task] = means[task] + share if task in means else share
        return means

    def _forward(
        self, inputs: Inputs, segments: list[Segment], size: int, noise: Key | None
    ) -> Iterator[tuple[Tensor, list[Piece]]]:
        """Yield the features of `size` examples after another, and whose they are; with noise they are one task's."""
        whole = Examples(inputs)
        for start in range(0, len(whole), size):
            part = whole if size >= len(whole) else whole.part(start, start + size)
            assert part.inputs is not None
            if noise is None:
                features = self.encode(part.inputs)
            else:
                features = call(self.model, self.weights, part.inputs, (*noise, segments[0][0], start))
            yield features, pieces_of(segments, start, size)


def pieces_of(segments: list[Segment], start: int, size: int) -> list[Piece]:
    """Return whose the `size` examples from `start` on are, of inputs of several tasks."""
    pieces = []
    for task, low, high in segments:
        first, last = max(low - start, 0), min(high - start, size)
        if first < last:
            pieces.append((task, slice(first, last), slice(first + start - low, last + start - low), high - low))
    return pieces


def in_groups(
    compute: Callable[[Inputs, list[Segment], int], dict[str, Tensor]], batch: Batch, chunk: int | None,
    learnables: Iterable[Tensor],
) -> tuple[dict[str, Tensor], int | None]:
    """Return the losses of a batch, of inputs of one shape after another, and the chunk to go on with (see `in_chunks`).

    `compute(inputs, segments, size)` returns those of such inputs and, with gradients enabled, may add to the learnables'.
    """
    losses: dict[str, Tensor] = {}
    learnables = list(learnables)
    for inputs, segments in concatenated(batch):
        undo = restoring(learnables if torch.is_grad_enabled() else [])
        group_losses, chunk = in_chunks(functools.partial(compute, inputs, segments), size_of(inputs), chunk, undo)
        losses |= group_losses
    return losses, chunk


def restoring(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Return what makes the gradients of tensors again what they are now, of which copies are kept: autograd adds in place."""
    kept = [(tensor, None if tensor.grad is None else tensor.grad.clone()) for tensor in tensors]

    def restore() -> None:
        for tensor, gradient in kept:
            tensor.grad = None if gradient is None else gradient.clone()  # memory may run out again

    return restore


def in_chunks(
    compute: Callable[[int], Result], examples: int, chunk: int | None, undo: Callable[[], None] = lambda: None
) -> tuple[Result, int | None]:
    """Return `compute(size)` and the chunk to go on with.

    `size` is the number of examples in one forward pass: all, or the chunk. When memory runs out, what was done is
    undone and tried again with half of it. Raises MergeError where one example at a time is too much.
    """
    while True:
        size = min(chunk or examples, examples)
        try:
            return compute(size), chunk
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise MergeError("out of memory with one example at a time: use a smaller model") from error
            undo()
            chunk = -(-size // 2)
            log.warning("out of memory with %d examples in a forward pass: trying %d", size, chunk)


def concatenated(batch: Batch) -> Iterator[tuple[Inputs, list[Segment]]]:
    """Yield inputs of equal shape together, with the task and the rows of each segment."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for task, examples in batch.items():
        groups.setdefault(_form(examples.inputs), []).append(task)
    for tasks in groups.values():
        segments, start = [], 0
        for task in tasks:
            segments.append((task, start, start + len(batch[task])))
            start += len(batch[task])
        yield _together([batch[task].inputs for task in tasks]), segments


def _form(inputs: Inputs | None) -> tuple[Any, ...]:
    if isinstance(inputs, Mapping):
        return tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in inputs.items())
    assert inputs is not None
    return inputs.shape[1:], inputs.dtype


def _together(parts: list[Any]) -> Inputs:
    if isinstance(parts[0], Mapping):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)  # [B, ...]
