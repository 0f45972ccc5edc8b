"""What an adaptation minimises: a loss of every example, from its features, or one of the batch as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.foreign import head_error, logits_of
from fusionbench_lite.adaptation.engine.procedure import Examples, Head
from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.models.heads import entropy, without_masked
from fusionbench_lite.models.modes import is_mixed, unmixed

__all__ = ["OBJECTIVES", "EntropyOfMean", "Objective", "entropy", "objective"]

Objective = Callable[[str, Tensor, Examples], Tensor]
"""`objective(task, features [B, d], examples)` returns the losses [B], whose mean over a batch is the task's loss."""

OBJECTIVES = ("entropy", "cross_entropy", "entropy_of_mean")


def objective(name: str, heads: Mapping[str, Head]) -> Objective:
    """Return the objective of this name: entropy of the predictions or of their mean, or cross entropy with labels."""
    if name == "entropy_of_mean":
        return EntropyOfMean(heads)
    logits_by = Logits(heads)

    def unsupervised(task: str, features: Tensor, examples: Examples) -> Tensor:
        return entropy(logits_by(task, features))

    def supervised(task: str, features: Tensor, examples: Examples) -> Tensor:
        if examples.labels is None:
            raise MergeError(f"task {task!r}: this objective needs labels: let the batches yield (inputs, labels)")
        logits, labels = logits_by(task, features), examples.labels.long()
        outside = (labels < 0) | (labels >= logits.shape[-1])
        masked = logits.detach().gather(1, labels.clamp(0, logits.shape[-1] - 1)[:, None])[:, 0] == -torch.inf
        if bool((outside | masked).any()):
            raise _of_labels(task, labels, logits.shape[-1], outside, masked)
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    return supervised if name == "cross_entropy" else unsupervised


class EntropyOfMean:
    """The entropy H(z̄) of a batch's mean logits z̄, which FusionBench minimises for GPT-2 and Flan-T5 (docs/decisions.md, D3).

    It is a loss of a task's batch as a whole. Every example of the batch is given it, so that their mean is the loss.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        self.logits = Logits(heads)

    def __call__(self, task: str, features: Tensor, examples: Examples) -> Tensor:
        """Return H(z̄) for each of the examples, which are the whole batch."""
        logits = self.logits(task, features)
        return entropy(logits.mean(0)).expand(len(logits))  # [B]

    def around(self, means: Mapping[str, Tensor]) -> Objective:
        """Return the objective for parts of a batch whose mean logits are known, {task: [C]}.

        An example's loss is H(z̄) + ⟨z - z̄, ∂H/∂z̄⟩ with z̄ constant: mean and gradient over the batch are those of H(z̄).
        Classes of probability 0 have slope 0.
        """

        def linear(task: str, features: Tensor, examples: Examples) -> Tensor:
            mean = means[task]
            log_probabilities = torch.log_softmax(mean, dim=-1)
            value = entropy(mean)
            slope = -log_probabilities.exp() * (without_masked(log_probabilities) + value)
            away = (self.logits(task, features) - mean).masked_fill(mean == -torch.inf, 0.0)
            return value + away @ slope

        return linear


class Logits:
    """The logits [B, C] that the heads make of features [B, d], which are looked at closely for a task's first batch."""

    def __init__(self, heads: Mapping[str, Head]) -> None:
        self.heads = heads
        self._seen: set[str] = set()

    def __call__(self, task: str, features: Tensor) -> Tensor:
        """Return the logits. Raises MergeError naming the task where the head gives none, or none to learn from."""
        # Mixed precision ends at the features: logits, cosines times 100, are too coarse in bfloat16.
        exact = features.float() if is_mixed(features.device) else features
        with unmixed(features.device):
            logits = self._run(task, exact)
            if task not in self._seen and len(logits) and not torch.is_inference_mode_enabled():
                self._check(task, exact.detach(), logits.detach())
                self._seen.add(task)
        return logits

    def _run(self, task: str, features: Tensor) -> Tensor:
        try:
            output = self.heads[task](features)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise head_error(task, self.heads[task], features, error) from error
        logits = logits_of(output, task, features)
        if logits.shape[-1] < 2:
            raise MergeError(
                f"task {task!r}: its head has one class, so its predictions have no entropy to minimise: leave the task out "
                "or give a head with at least 2 classes"
            )
        return logits

    def _check(self, task: str, features: Tensor, logits: Tensor) -> None:
        finite = torch.isfinite(logits)
        odd = ~(finite | (logits == -torch.inf)) | ~finite.any(1, keepdim=True)
        if bool(torch.isfinite(features).all()) and bool(odd.any()):
            row, column = odd.nonzero()[0].tolist()
            raise MergeError(
                f"task {task!r}: its head gives example {row} the logit {float(logits[row, column])} for class {column}: "
                "give finite logits, or -inf for some of the classes to mask them"
            )
        if bool(((logits >= 0) & (logits <= 1)).all()) and bool(((logits.double().sum(1) - 1).abs() < 1e-2).all()):
            raise MergeError(
                f"task {task!r}: its head returns probabilities, rows that sum to 1, where logits are needed: "
                "take the softmax out of it, or return its logarithm"
            )
        with torch.enable_grad():
            leaf = features[:2].clone().requires_grad_()
            output = self._run(task, leaf)
            reached = output.requires_grad and torch.autograd.grad(output.sum(), leaf, allow_unused=True)[0] is not None
        if not reached:
            raise MergeError(
                f"task {task!r}: its head passes no gradient on to its features, and nothing would be learned from it: take "
                "detach, no_grad, inference_mode or quantised layers out of it"
            )


def _of_labels(task: str, labels: Tensor, classes: int, outside: Tensor, masked: Tensor) -> MergeError:
    if bool(outside.any()):
        return MergeError(
            f"task {task!r}: labels from {int(labels.min())} to {int(labels.max())} do not fit a head with "
            f"{classes} classes, 0 to {classes - 1}"
        )
    return MergeError(
        f"task {task!r}: the label {int(labels[masked][0])} is of a class that its head masks with -inf, and its cross entropy "
        "is infinite: leave such examples out, or unmask the class"
    )
