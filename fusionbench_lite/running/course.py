"""Files of a record that an adaptation leaves: its course, the predictions of its evaluations, and what it learned."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.evaluations import Evaluations, Trajectory
    from fusionbench_lite.adaptation.engine.module import Adaptation
    from fusionbench_lite.adaptation.engine.procedure import Procedure

LEARNED = "learned.safetensors"


def evaluations(kept: Evaluations) -> list[dict[str, Any]]:
    """Return every evaluation of an adaptation: step, values, and the loss on held-out unlabelled examples."""
    return [
        {
            "step": step, "average": _average(kept, step), "per_task": dict(per_task),
            "held_out_loss": kept.held_out_losses.get(step),
        }
        for step, per_task in kept.values.items()
    ]


def _average(kept: Evaluations, step: int) -> float | None:
    """The mean over tasks, None where units or directions of their metrics differ."""
    values = kept.values[step].values()
    return None if kept.average(step) is None else sum(values) / len(values)


def writers(
    module: Adaptation, kept: Evaluations, trajectory: Trajectory
) -> dict[str, Callable[[Path], None]]:
    """Return writers of history.csv, evaluations.npz, trajectory.npz and of what was learned."""
    procedure = module.procedure
    files: dict[str, Callable[[Path], None]] = {
        "history.csv": lambda path: _write_history(path, module, kept),
        "evaluations.npz": lambda path: _write_evaluations(path, kept),
        LEARNED: lambda path: _write_learned(path, procedure),
    }
    if trajectory.steps:
        files["trajectory.npz"] = lambda path: _write_trajectory(path, procedure, trajectory)
    for rule, step in kept.chosen.items():
        if step != module.completed:
            learned = kept.learned[rule]
            files[f"learned-{rule}.safetensors"] = lambda path, learned=learned: _save(path, _state(learned), procedure)  # type: ignore[misc]
    return files


def learned_file(record: Path, rule: str) -> Path:
    """Return the file of what had been learned at the step that a selection rule picked."""
    of_rule = record / f"learned-{rule}.safetensors"
    return of_rule if of_rule.is_file() else record / LEARNED


def _write_history(path: Path, module: Adaptation, kept: Evaluations) -> None:
    """Write one line per number of finished steps: the losses of that step, and what evaluations found."""
    history, tasks, judged = module.history, module.tasks, list(kept.metrics)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "step", "loss", *(f"loss/{t}" for t in tasks), "average", *(f"{kept.metrics[t]}/{t}" for t in judged),
                "held_out",
            ]
        )
        for step in range(module.completed + 1):
            losses: list[Any] = [""] * (1 + len(tasks))
            if step:
                losses = [history.losses[step - 1], *(history.task_losses[task][step - 1] for task in tasks)]
            values: list[Any] = [""] * (1 + len(judged))
            if step in kept.values:
                average = _average(kept, step)
                values = ["" if average is None else average, *(kept.values[step][task] for task in judged)]
            writer.writerow([step, *losses, *values, kept.held_out_losses.get(step, "")])


def _write_evaluations(path: Path, kept: Evaluations) -> None:
    """Write the predictions of every evaluation, `<step>/<task>` [N]; classes in the smallest integer type that holds them."""
    arrays = {
        f"{step}/{task}": _small(result.predictions)
        for step in kept.predictions
        for task, result in kept.results(step).items()
    }
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _small(predictions: NDArray[Any]) -> NDArray[Any]:
    return predictions.astype(np.min_scalar_type(int(predictions.max()))) if predictions.dtype.kind == "i" else predictions


def _write_trajectory(path: Path, procedure: Procedure, trajectory: Trajectory) -> None:
    """Write `steps` [k], `coefficients` [k, L, T] and the tensors' `names` [L]."""
    names = [name for name in procedure.coefficients() if not name.endswith("/common")]
    with path.open("wb") as file:
        np.savez_compressed(
            file, steps=np.array(trajectory.steps), coefficients=torch.stack(trajectory.coefficients).numpy(),
            names=np.array(names),
        )


def _write_learned(path: Path, procedure: Procedure) -> None:
    """Write `coefficients/<tensor>` [T] and `masks/<matrix>` [T, r] in task order, `spectrum/<matrix>` [T, r] behind the
    masks, and `state/<name>`, every learnable."""
    tensors = {f"coefficients/{name}": value for name, value in procedure.coefficients().items()}
    tensors |= {f"masks/{name}": value for name, value in procedure.masks().items()}
    tensors |= {name: value.contiguous() for name, value in procedure.extras().items()}
    _save(path, tensors | _state(procedure.learned()), procedure)


def _state(learned: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"state/{name}": tensor for name, tensor in learned.items()}


def _save(path: Path, tensors: Mapping[str, torch.Tensor], procedure: Procedure) -> None:
    from safetensors.torch import save_file

    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(copies, path, metadata={"tasks": ",".join(procedure.tasks)})
