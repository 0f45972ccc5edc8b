"""What an adaptation minimises: a loss of every example, from its features, or one of the batch as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.procedure import Examples, Head
from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.heads import entropy
from fusionbench_lite.models.modes import is_mixed, unmixed

__all__ = ["OBJECTIVES", "EntropyOfMean", "Objective", "entropy", "objective"]

Objective = Callable[[str, Tensor, Examples], Tensor]
"""`objective(task, features [B, d], examples)` returns the losses [B], whose mean over a batch is the task's loss."""

OBJECTIVES = ("entropy", "cross_entropy", "entropy_of_mean")


def objective(name: str, heads: Mapping[str, Head]) -> Objective:
    """Return the objective of this name: entropy of the predictions or of their mean, or cross entropy with labels."""
    if name == "entropy_of_mean":
        return EntropyOfMean(heads)

    def unsupervised(task: str, features: Tensor, examples: Examples) -> Tensor:
        return entropy(_logits(heads, task, features))

    def supervised(task: str, features: Tensor, examples: Examples) -> Tensor:
        if examples.labels is None:
            raise MergeError(f"task {task!r}: this objective needs labels: let the batches yield (inputs, labels)")
        logits, labels = _logits(heads, task, features), examples.labels
        if bool(((labels < 0) | (labels >= logits.shape[-1])).any()):
            raise MergeError(
                f"task {task!r}: labels from {int(labels.min())} to {int(labels.max())} do not fit a head with "
                f"{logits.shape[-1]} classes, 0 to {logits.shape[-1] - 1}"
            )
        return nn.functional.cross_entropy(logits, labels.long(), reduction="none")

    return supervised if name == "cross_entropy" else unsupervised


class EntropyOfMean:
    """The entropy H(z̄) of a batch's mean logits z̄, which FusionBench minimises for GPT-2 and Flan-T5 (docs/decisions.md, D3).

    It is a loss of a task's batch as a whole. Every example of the batch is given it, so that their mean is the loss.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        self.heads = heads

    def __call__(self, task: str, features: Tensor, examples: Examples) -> Tensor:
        """Return H(z̄) for each of the examples, which are the whole batch."""
        logits = self.logits(task, features)
        return entropy(logits.mean(0)).expand(len(logits))  # [B]

    def logits(self, task: str, features: Tensor) -> Tensor:
        """Return the logits [B, C] of a task."""
        return _logits(self.heads, task, features)

    def around(self, means: Mapping[str, Tensor]) -> Objective:
        """Return the objective for parts of a batch whose mean logits are known, {task: [C]}.

        An example's loss is H(z̄) + ⟨z - z̄, ∂H/∂z̄⟩ with z̄ constant: mean and gradient over the batch are those of H(z̄).
        """

        def linear(task: str, features: Tensor, examples: Examples) -> Tensor:
            mean = means[task]
            log_probabilities = torch.log_softmax(mean, dim=-1)
            value = entropy(mean)
            slope = -log_probabilities.exp() * (log_probabilities + value)
            return value + (self.logits(task, features) - mean) @ slope

        return linear


def _logits(heads: Mapping[str, Head], task: str, features: Tensor) -> Tensor:
    # Mixed precision ends at the features: logits, cosines times 100, are too coarse in bfloat16.
    exact = features.float() if is_mixed(features.device) else features
    with unmixed(features.device):
        logits = heads[task](exact)
    if logits.shape[-1] < 2:
        raise MergeError(
            f"task {task!r}: its head has one class, so its predictions have no entropy to minimise: leave the task out "
            "or give a head with at least 2 classes"
        )
    return logits
