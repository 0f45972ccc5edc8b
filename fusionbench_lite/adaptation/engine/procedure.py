"""What an adaptive method is to the engine: learnables, what a step reads and does, and the model that results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from fusionbench_lite.models.inputs import Inputs, each, size_of

if TYPE_CHECKING:
    from fusionbench_lite.weights.experts import Experts

Head = Callable[[Tensor], Tensor]


class Update(Protocol):
    """Checks each task's loss and the gradients, adds gradients up over devices, and steps.

    `clip`: the largest norm of the gradient, that of all devices together; None for any.
    """

    def __call__(self, losses: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, /, clip: float | None = None) -> None:
        """Do one step of the optimizer."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Some examples of one task, first dimension B.

    `inputs` is None where the procedure does not read them; `precomputed` is what `Procedure.precomputed` returned for them;
    `labels` [B] are there where the procedure reads labels.
    """

    inputs: Inputs | None = None
    precomputed: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        if self.inputs is not None:
            return size_of(self.inputs)
        assert self.precomputed is not None
        return len(self.precomputed)

    def part(self, first: int, last: int) -> Examples:
        """Return some of the examples in a row."""
        return self._each(lambda tensor: tensor[first:last])

    def to(self, device: torch.device) -> Examples:
        """Return the examples on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, function: Callable[[Tensor], Tensor]) -> Examples:
        inputs = None if self.inputs is None else each(function, self.inputs)
        precomputed, labels = (None if tensor is None else function(tensor) for tensor in (self.precomputed, self.labels))
        return Examples(inputs, precomputed, labels)


Batch = Mapping[str, Examples]


@dataclasses.dataclass(frozen=True)
class Draw:
    """One batch of every task that a step reads: the `number`-th (from 0) of the stream `role`.

    Roles are separate streams. `size` and `kind` replace the batch size and the kind of stream that the run is set to. `part`:
    from where to where in the examples of the split, in an order of their own, which a role reads.
    """

    number: int
    role: str = ""
    size: int | None = None
    kind: str | None = None
    part: tuple[float, float] = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Context:
    """What a procedure works with: the encoder, the heads by task, the number of steps to come, the largest number of
    examples in one forward pass (None: no limit), some inputs, from which widths inside the encoder are measured, and the seed
    of dropout in steps (None: there is none)."""

    model: nn.Module
    heads: Mapping[str, Head]
    steps: int
    chunk: int | None = None
    example: Inputs | None = None
    dropout: int | None = None


class Procedure:
    """An adaptive method at work. Subclasses hold `experts`, and in `learnables` exactly what they learn.

    Class attributes say what a step reads: `reads_inputs` is False where `precomputed` suffices; `reads_labels` marks a
    supervised method; `split` is the split of the data, of which it reads at most `most` examples a task (None: all);
    `updates_per_batch`: the several batches that a run may be set
    to take per step are updates of their own instead of one larger batch; `differentiates` says that a step takes gradients
    through the model; `drops` that its steps know dropout; `ragged` that `precomputed` has a row for each place of the inputs,
    [B, L, ...], of which those behind an example's own length are 0.
    """

    experts: Experts
    learnables: nn.Module
    reads_inputs = True
    reads_labels = False
    split = "test"
    most: int | None = None
    updates_per_batch = False
    differentiates = True
    drops = False
    ragged = False

    @property
    def tasks(self) -> list[str]:
        """The tasks in order."""
        return self.experts.tasks

    def draws(self, step: int) -> Sequence[Draw]:
        """Return what step `step` (from 0) reads; one batch of every task unless overridden."""
        return (Draw(step),)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return the optimizers, whose state is saved and restored."""
        raise NotImplementedError

    def precomputed(self, task: str, inputs: Inputs) -> Tensor | None:
        """Return what frozen networks say about inputs, [B, ...]: computed once per example and cached by a run."""
        return None

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Do step `step` on its draws and return each task's loss at the values before the update."""
        raise NotImplementedError

    def refresh(self, step: int) -> None:
        """Prepare `encode` and `losses` for the present learnables, after `step` finished steps."""

    def encode(self, task: str, examples: Examples) -> Tensor:
        """Return the features [B, d] that the adapted model gives for examples of a task."""
        raise NotImplementedError

    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return each task's adaptation loss at the present learnables, without touching them."""
        raise NotImplementedError

    def coefficients(self) -> dict[str, Tensor]:
        """Return the merging coefficients, {tensor name: [T]}; empty for methods without."""
        return {}

    def masks(self) -> dict[str, Tensor]:
        """Return the hard masks of singular components, {matrix name: bool [T, r]}; empty for methods without."""
        return {}

    def learned(self) -> dict[str, Tensor]:
        """Return a copy of every learnable by name."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.learnables.state_dict().items()}

    def restore(self, learned: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> None:
        """Take back what `learned` and, where it was kept, `extras` returned. Raises KeyError or RuntimeError for other tensors."""
        self.learnables.load_state_dict(dict(learned))

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the merged weights, without adapters, in the keys, order and dtypes of the pretrained model."""
        raise NotImplementedError

    def extras(self) -> dict[str, Any]:
        """Return constants that pictures need, such as the spectra behind masks: {name: tensor}."""
        return {}
