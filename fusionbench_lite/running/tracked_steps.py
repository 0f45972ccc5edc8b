"""What a tracked run is told of an adaptation: losses, evaluations and coefficients, as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.evaluations import Evaluations, Trajectory
    from fusionbench_lite.running.tracking import Tracker


class TrackedSteps(Callback):
    """Tell a tracker of every step, after the callbacks that evaluate and keep coefficients. It has no state of its own."""

    def __init__(self, tracker: Tracker, evaluations: Evaluations, trajectory: Trajectory) -> None:
        self.tracker, self.evaluations, self.trajectory = tracker, evaluations, trajectory

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell of the start; of everything that a checkpoint holds, where the tracked run begins anew."""
        if pl_module.completed == 0 or self.tracker.replays:
            for step in range(pl_module.completed + 1):
                self._tell(pl_module, step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tell of the step that is done."""
        self._tell(pl_module, pl_module.completed)

    def _tell(self, module: Any, step: int) -> None:
        numbers: dict[str, float] = {}
        if step:
            numbers["loss"] = module.history.losses[step - 1]
            numbers |= {f"loss/{task}": losses[step - 1] for task, losses in module.history.task_losses.items()}
        if step in self.evaluations.values:
            values, average = self.evaluations.values[step], self.evaluations.average(step)
            numbers |= {f"evaluation/{task}": value for task, value in values.items()}
            numbers |= {} if average is None else {"evaluation/average": average}
        if step in self.evaluations.held_out_losses:
            numbers["held_out_loss"] = self.evaluations.held_out_losses[step]
        if step in self.trajectory.steps:
            numbers |= self._coefficients(module.tasks, step)
        if numbers:
            self.tracker.step(step, numbers)

    def _coefficients(self, tasks: tuple[str, ...], step: int) -> dict[str, float]:
        """Return the mean, least and largest coefficient of every task over tensors."""
        rows = self.trajectory.coefficients[self.trajectory.steps.index(step)]  # [L, T]
        summary = {"mean": rows.mean(0), "min": rows.amin(0), "max": rows.amax(0)}
        return {
            f"coefficients/{name}/{task}": float(value)
            for name, column in summary.items()
            for task, value in zip(tasks, column, strict=True)
        }
