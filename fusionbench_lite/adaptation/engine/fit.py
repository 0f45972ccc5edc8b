"""Run an adaptation under Lightning's trainer: devices, precision, progress, checkpoint and resume."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fusionbench_lite.adaptation.engine.module import Adaptation, Steps, TaskParallelStrategy
from fusionbench_lite.adaptation.engine.procedure import Batch, Procedure
from fusionbench_lite.base import preemption
from fusionbench_lite.base.processes import PATIENCE
from fusionbench_lite.paths import atomic_file

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """How an adaptation runs, none of which changes its result on one device.

    `checkpoint`: file to resume from and to save to, every `checkpoint_every` steps; None saves nothing. `devices`
    share the tasks. `precision`: Lightning's name.
    """

    checkpoint: Path | None = None
    checkpoint_every: int = 25
    devices: int = 1
    accelerator: str = "cpu"
    precision: str = "32-true"


def fit(
    procedure: Procedure, batches_of: Callable[[int], Sequence[Batch]], steps: int, settings: FitSettings | None = None,
    callbacks: Sequence[Callback] = (),
) -> Adaptation:
    """Run a procedure for `steps` steps and return the module that holds it, resumed from the checkpoint if there is one.

    `batches_of(step)` returns this process's tasks' examples for each of `procedure.draws(step)`. Raises MergeError for
    a loss or a gradient that is not finite.
    """
    settings = settings or FitSettings()
    module = Adaptation(procedure)
    checkpoint = settings.checkpoint
    callbacks = list(callbacks)
    if checkpoint is not None:
        callbacks.append(SaveCheckpoint(checkpoint, settings.checkpoint_every))
    # Neither the caller's inference mode nor their random numbers are touched.
    with _quiet(), torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        trainer = lightning.Trainer(
            max_epochs=1, accelerator=settings.accelerator, callbacks=callbacks,
            precision=settings.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **_devices(settings),
        )
        resume = str(checkpoint) if checkpoint is not None and checkpoint.is_file() else None
        loader = Steps(module, batches_of, steps).loader()
        with preemption.held() if checkpoint is not None else contextlib.nullcontext():
            trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    return module


def _devices(settings: FitSettings) -> dict[str, Any]:
    """Return the trainer's arguments of devices and plugins; a launcher such as torchrun has already decided the number."""
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", settings.devices))
    nodes = int(os.environ.get("WORLD_SIZE", devices)) // devices
    files = AtomicCheckpointIO()
    if devices * nodes == 1:
        # Lightning would recognise Slurm, and answer signals and count processes in its own way.
        return {"devices": 1, "plugins": [files, LightningEnvironment()]}
    return {
        "devices": devices, "num_nodes": nodes, "strategy": TaskParallelStrategy(timeout=PATIENCE), "plugins": [files],
    }


class SaveCheckpoint(Callback):
    """Save φ, optimizer, history and generator every few steps, after the other callbacks of the step have run.

    Where the cluster wants the job back, they are saved at the end of the step, and the job ends.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save where the number of finished steps is a multiple of `every`, or where the job ends here."""
        wanted = preemption.is_wanted()
        if module.completed % self.every == 0 or wanted:
            trainer.save_checkpoint(self.path)
        if wanted:
            log.info("the cluster wants the job back: step %d is saved", module.completed)
            preemption.leave()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Say where a run goes on."""
        if module.completed:
            log.info("going on after step %d, from %s", module.completed, self.path)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, which appear whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write to a temporary file, flush it, rename it."""
        with atomic_file(Path(path)) as temporary, temporary.open("wb") as file:  # torch hides a full disk behind a path
            torch.save(checkpoint, file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advertisements and hints about data loaders out of the output."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
