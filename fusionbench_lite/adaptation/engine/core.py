"""Entropy and its gradient at the merged weights, for the batches of all tasks at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.errors import MergeError

Head = Callable[[Tensor], Tensor]
Segment = tuple[str, int, int]

log = logging.getLogger(__name__)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats of softmax(logits) for each row, [B] from [B, C] (AdaMerging, Eq. 4)."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


class MergedEncoder:
    """A model evaluated at merged weights that are leaves of the autograd graph.

    The module's own parameters are never touched: its forward runs with the leaves in their place, in evaluation mode.
    `chunk` bounds the number of examples in one forward pass; it halves when memory runs out.
    """

    def __init__(
        self, model: nn.Module, heads: Mapping[str, Head], parametrisation: Parametrisation, chunk: int | None = None
    ) -> None:
        self.model = model
        self.heads = heads
        self.parametrisation = parametrisation
        self.chunk = chunk
        known = model.state_dict()
        pretrained = parametrisation.experts.pretrained
        self.leaves = {
            name: torch.empty(
                part.origin.shape, dtype=pretrained[name].dtype, device=part.origin.device, requires_grad=True
            )
            for name, part in parametrisation.parts.items()
            if name in known
        }
        self._constants = {name: pretrained[name] for name in pretrained if name in known and name not in self.leaves}

    def refresh(self) -> None:
        """Merge with the present φ into the leaves and forget their gradients."""
        for leaf in self.leaves.values():
            leaf.grad = None
        self.parametrisation.write({name: leaf.detach() for name, leaf in self.leaves.items()})

    def encode(self, inputs: Tensor) -> Tensor:
        """Return features of the merged model."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            output: Tensor = torch.func.functional_call(self.model, {**self.leaves, **self._constants}, (inputs,))
        finally:
            for module, mode in modes:
                module.training = mode
        return output

    def accumulate(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add ∂/∂W Σ_t mean entropy of the batch to the leaves' gradients; return each task's mean entropy.

        Tasks whose inputs have one shape run as one concatenated forward pass.
        """
        losses: dict[str, Tensor] = {}
        for inputs, segments in _concatenated(batch):
            losses |= self._accumulate_group(inputs, segments)
        return losses

    def gradients(self) -> dict[str, Tensor]:
        """Return G = ∂L/∂W, in the work dtype, of every merged tensor that the forward pass read."""
        parts = self.parametrisation.parts
        return {
            name: leaf.grad.to(parts[name].origin.dtype) for name, leaf in self.leaves.items() if leaf.grad is not None
        }

    def _accumulate_group(self, inputs: Tensor, segments: list[Segment]) -> dict[str, Tensor]:
        while True:
            # Copies: autograd adds to gradients in place. There are none to copy before the first group of inputs.
            kept = {name: None if leaf.grad is None else leaf.grad.clone() for name, leaf in self.leaves.items()}
            try:
                return self._accumulate_chunks(inputs, segments)
            except torch.OutOfMemoryError as error:
                chunk = min(self.chunk or len(inputs), len(inputs))
                if chunk == 1:
                    raise MergeError("out of memory with one example at a time: use a smaller model") from error
                for name, leaf in self.leaves.items():
                    leaf.grad = kept[name]
                self.chunk = -(-chunk // 2)
                log.warning("out of memory with %d examples in a forward pass: trying %d", chunk, self.chunk)

    def _accumulate_chunks(self, inputs: Tensor, segments: list[Segment]) -> dict[str, Tensor]:
        size = self.chunk or len(inputs)
        losses = {task: torch.zeros((), device=inputs.device) for task, _, _ in segments}
        for start in range(0, len(inputs), size):
            features = self.encode(inputs[start : start + size])
            total: Any = 0
            for task, low, high in segments:
                first, last = max(low - start, 0), min(high - start, size)
                if first < last:
                    loss = entropy(self.heads[task](features[first:last])).sum() / (high - low)
                    losses[task] = losses[task] + loss.detach()
                    total = total + loss
            total.backward(inputs=list(self.leaves.values()))
        return losses


def _concatenated(batch: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, list[Segment]]]:
    """Yield inputs of equal shape as one tensor, with the task and the rows of each segment."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for task, inputs in batch.items():
        groups.setdefault((inputs.shape[1:], inputs.dtype), []).append(task)
    for tasks in groups.values():
        segments, start = [], 0
        for task in tasks:
            segments.append((task, start, start + len(batch[task])))
            start += len(batch[task])
        yield torch.cat([batch[task] for task in tasks]), segments
