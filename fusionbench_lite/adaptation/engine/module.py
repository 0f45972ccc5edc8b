"""The Lightning module of every adaptive method, and the strategy that shares tasks between devices."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fusionbench_lite.adaptation.engine.procedure import Batch, Procedure
from fusionbench_lite.errors import MergeError


@dataclasses.dataclass
class History:
    """What a run has seen: the total loss and each task's loss of every step, and the seconds its steps took."""

    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    task_losses: dict[str, list[float]] = dataclasses.field(default_factory=dict)


class Adaptation(lightning.LightningModule):
    """A procedure, its optimizers and its history under Lightning's trainer.

    The state dict is that of the learnables alone. `procedure` is no submodule on purpose: the trainer must neither
    save models, nor move them, nor switch them to training mode.
    """

    def __init__(self, procedure: Procedure) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.learnables = procedure.learnables
        self.tasks = tuple(procedure.tasks)
        self.history = History(task_losses={task: [] for task in self.tasks})
        self._procedure = (procedure,)

    @property
    def procedure(self) -> Procedure:
        """The adaptive method."""
        return self._procedure[0]

    @property
    def completed(self) -> int:
        """The number of finished steps."""
        return len(self.history.losses)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the procedure's optimizers."""
        return list(self.procedure.optimizers())

    def transfer_batch_to_device(self, batch: Sequence[Batch], device: torch.device, dataloader_idx: int) -> list[Batch]:
        """Move the examples of every draw."""
        return [{task: examples.to(device) for task, examples in draw.items()} for draw in batch]

    def training_step(self, batches: Sequence[Batch], batch_index: int) -> None:
        """Run one step; raises MergeError when a task's loss or a gradient is not finite, leaving φ as it was."""
        start = time.perf_counter()
        losses = self._shared_losses(self.procedure.step(self.completed, batches, self._update))
        for task in self.tasks:
            self.history.task_losses[task].append(losses[task])
        self.history.losses.append(sum(losses[task] for task in self.tasks))
        self.history.seconds += time.perf_counter() - start

    def _update(
        self, losses: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, clip: float | None = None
    ) -> None:
        for task, loss in self._shared_losses(losses).items():
            if not math.isfinite(loss):
                raise MergeError(
                    f"task {task!r}: the loss is {loss} at step {self.completed + 1}; "
                    "lower the learning rate or check the task's inputs"
                )
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._share_gradients(parameters)
        # A sum holds every entry that is not finite, and one look at the sums waits for the device once.
        sums = [parameter.grad.sum() for parameter in parameters if parameter.grad is not None]
        if sums and not bool(torch.isfinite(torch.stack(sums)).all()):
            raise MergeError(
                f"the gradient at step {self.completed + 1} is not finite; lower the learning rate or check the inputs"
            )
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()

    def _shared_losses(self, mine: Mapping[str, Tensor]) -> dict[str, float]:
        like = next(iter(mine.values())) if mine else torch.zeros((), device=self.device)
        losses = torch.stack([mine.get(task, torch.zeros_like(like)).detach() for task in self.tasks])  # [T]
        return dict(zip(self.tasks, self._sum_over_devices(losses).tolist(), strict=True))

    def _share_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes; one without a task has none, and adds zeros where another has some."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        present = torch.tensor([float(p.requires_grad and p.grad is not None) for p in parameters], device=parameters[0].device)
        for parameter, has_gradient in zip(parameters, self._sum_over_devices(present).tolist(), strict=True):
            if has_gradient:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self._sum_over_devices(gradient)

    def _sum_over_devices(self, tensor: Tensor) -> Tensor:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(tensor)
        return tensor

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what φ and the optimizers do not hold: the history and the state of torch's generator."""
        checkpoint["adaptation"] = {"history": dataclasses.asdict(self.history), "generator": torch.get_rng_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history and torch's generator; the next batch is that of step `completed`."""
        stored = checkpoint["adaptation"]
        self.history = History(**stored["history"])
        torch.set_rng_state(stored["generator"])


class Steps(IterableDataset[Sequence[Batch]]):
    """The batches of the steps that are still to be done: `batches_of(step)` for each."""

    def __init__(self, module: Adaptation, batches_of: Callable[[int], Sequence[Batch]], steps: int) -> None:
        super().__init__()
        self.module = module
        self.batches_of = batches_of
        self.steps = steps

    def __iter__(self) -> Iterator[Sequence[Batch]]:
        for step in range(self.module.completed, self.steps):
            yield self.batches_of(step)

    def loader(self) -> DataLoader[Sequence[Batch]]:
        """Return a loader that hands the batches on as they are."""
        return DataLoader(self, batch_size=None)


class TaskParallelStrategy(DDPStrategy):
    """Processes that each adapt on their own tasks and sum the gradients of φ.

    Lightning's data-parallel strategy starts and connects the processes. Its wrapper around the module is left out:
    φ never enters an autograd graph, so there is nothing for its hooks to wait for; the module itself adds up the
    gradients.
    """

    def _setup_model(self, model: Any) -> Any:
        return model

    def _register_ddp_hooks(self) -> None:
        return None
