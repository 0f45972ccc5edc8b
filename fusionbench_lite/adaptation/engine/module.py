"""The Lightning module of every adaptive method, and the strategy that shares tasks between devices."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fusionbench_lite.adaptation.engine.core import MergedEncoder
from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
from fusionbench_lite.errors import MergeError

Batch = Mapping[str, Tensor]


@dataclasses.dataclass
class History:
    """What a run has seen: the total loss and each task's loss of every step, and the seconds its steps took."""

    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    task_losses: dict[str, list[float]] = dataclasses.field(default_factory=dict)


class Adaptation(lightning.LightningModule):
    """One adaptation step: merge into leaves, accumulate G, pull it back to φ, one Adam step on φ.

    Its state dict is φ alone. `encoder` holds the model and the merged leaves and is no submodule on purpose: the
    trainer must neither save it, nor move it, nor switch it to training mode.
    """

    def __init__(self, parametrisation: Parametrisation, encoder: MergedEncoder, tasks: Iterable[str]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.parametrisation = parametrisation
        self.tasks = tuple(tasks)
        self.history = History(task_losses={task: [] for task in self.tasks})
        self._encoder = (encoder,)

    @property
    def encoder(self) -> MergedEncoder:
        """The merged model that φ describes."""
        return self._encoder[0]

    @property
    def completed(self) -> int:
        """The number of finished steps."""
        return len(self.history.losses)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with betas (0.9, 0.999), eps 1e-8, no weight decay (specification of the adaptive methods, §1.2)."""
        learnable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.Adam(learnable, lr=self.parametrisation.lr)

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """Run one step; raises MergeError when a task's loss is not finite, leaving φ as it was."""
        start = time.perf_counter()
        self.encoder.refresh()
        losses = self._shared_losses(self.encoder.accumulate(batch))
        for task, loss in losses.items():
            if not torch.isfinite(torch.tensor(loss)):
                raise MergeError(
                    f"task {task!r}: the loss is {loss} at step {self.completed + 1}; "
                    "lower the learning rate or check the task's inputs"
                )
        self.parametrisation.pull_back(self.encoder.gradients())
        self._share_gradients()
        optimizer = self.optimizers()
        optimizer.step()  # type: ignore[union-attr]
        for task in self.tasks:
            self.history.task_losses[task].append(losses[task])
        self.history.losses.append(sum(losses[task] for task in self.tasks))
        self.history.seconds += time.perf_counter() - start
        if self._trainer is not None and self.trainer.loggers:
            self.log_dict({"loss": self.history.losses[-1]} | {f"loss/{task}": losses[task] for task in self.tasks})

    def _shared_losses(self, own: Mapping[str, Tensor]) -> dict[str, float]:
        like = next(iter(own.values())) if own else torch.zeros((), device=self.device)
        losses = torch.stack([own.get(task, torch.zeros_like(like)) for task in self.tasks])
        return dict(zip(self.tasks, self._sum_over_devices(losses).tolist(), strict=True))

    def _share_gradients(self) -> None:
        for parameter in self.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                parameter.grad = self._sum_over_devices(parameter.grad)

    def _sum_over_devices(self, tensor: Tensor) -> Tensor:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(tensor)
        return tensor

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what φ and the optimizer do not hold: the history and the state of torch's generator."""
        checkpoint["adaptation"] = {"history": dataclasses.asdict(self.history), "generator": torch.get_rng_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history and torch's generator; the next batch is that of step `completed`."""
        stored = checkpoint["adaptation"]
        self.history = History(**stored["history"])
        torch.set_rng_state(stored["generator"])


class Steps(IterableDataset[Batch]):
    """The batches of the steps that are still to be done: `batch_of(step)` for each."""

    def __init__(self, module: Adaptation, batch_of: Callable[[int], Batch], steps: int) -> None:
        super().__init__()
        self.module = module
        self.batch_of = batch_of
        self.steps = steps

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.module.completed, self.steps):
            yield self.batch_of(step)

    def loader(self) -> DataLoader[Batch]:
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


def own_tasks(tasks: Iterable[str]) -> list[str]:
    """Return the tasks of this process: every n-th, where n processes share the work; all where one runs alone."""
    tasks = list(tasks)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return tasks[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
    return tasks
