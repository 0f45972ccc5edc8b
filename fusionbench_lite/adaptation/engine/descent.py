"""Gradient descent on what describes a merge: coefficients, masks, and other learnables of a parametrisation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fusionbench_lite.adaptation.engine.core import MergedEncoder
from fusionbench_lite.adaptation.engine.objectives import objective
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Examples, Procedure, Update

Learner = Callable[[Context], Procedure]
"""What a method's function returns: the procedure, once it is told the model, the heads and the number of steps."""


def descend(parametrisation: Parametrisation, loss: str = "entropy") -> Learner:
    """Return the learner that follows the gradient of a loss on a parametrisation."""
    return functools.partial(_descent, parametrisation, loss)


def _descent(parametrisation: Parametrisation, loss: str, context: Context) -> Procedure:
    return Descent(parametrisation, context, loss)


class Descent(Procedure):
    """Each step merges into leaves, accumulates G = ∂L/∂W for the batches of all tasks, pulls it back to φ in closed
    form, and takes an Adam step on φ. L is the sum over tasks of the mean loss of the task's batch. Where the context asks
    for dropout, its random numbers depend on seed, step, task and where in its batch a pass begins."""

    drops = True

    def __init__(self, parametrisation: Parametrisation, context: Context, loss: str = "entropy") -> None:
        self.parametrisation = self.learnables = parametrisation
        self.experts = parametrisation.experts
        self.encoder = MergedEncoder(context, parametrisation)
        self.objective = objective(loss, context.heads)
        self.reads_labels = loss == "cross_entropy"
        self.dropout = context.dropout

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Adam with betas (0.9, 0.999), eps 1e-8, no weight decay (Kingma and Ba 2015; docs/decisions.md, D1)."""
        learnable = [parameter for parameter in self.learnables.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.Adam(learnable, lr=self.parametrisation.lr)
        return (self._optimizer,)

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Do one step; φ stays as it was when a loss is not finite."""
        (batch,) = batches
        self.encoder.refresh()
        noise = None if self.dropout is None else (self.dropout, "dropout", step)
        losses = self.encoder.accumulate(batch, self.objective, noise=noise)
        self.parametrisation.pull_back(self.encoder.gradients())
        update(losses, self._optimizer)
        return losses

    def refresh(self, step: int) -> None:
        """Merge with the present φ."""
        self.encoder.refresh()

    def encode(self, task: str, examples: Examples) -> Tensor:
        """Return features of the merged model, the same for every task."""
        assert examples.inputs is not None
        return self.encoder.encode(examples.inputs)

    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return each task's mean loss."""
        return self.encoder.losses(batch, self.objective)

    def coefficients(self) -> dict[str, Tensor]:
        """Return the raw λ."""
        return self.parametrisation.named_coefficients()

    def masks(self) -> dict[str, Tensor]:
        """Return the hard masks."""
        return self.parametrisation.named_masks()

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the merged weights."""
        return self.parametrisation.merged()

    def extras(self) -> dict[str, Tensor]:
        """Return the singular values behind the masks, `spectrum/<matrix>` [T, r]."""
        return self.parametrisation.spectra()
