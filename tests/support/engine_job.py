"""A small adaptation run: from a file for the tests that kill it or share it between processes, and as a function.

    python engine_job.py OUT.pt METHOD STEPS [CHECKPOINT] [STOP_AT]

With STOP_AT the process kills itself with SIGKILL when that step is about to begin.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.evaluations import Evaluations, Trajectory
from fusionbench_lite.adaptation.engine.fit import FitSettings, fit
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.base.processes import own_tasks
from fusionbench_lite.evaluation.results import TaskResult
from fusionbench_lite.weights.experts import Experts

TASKS = ("one", "two", "three")
RATES = {
    "concrete_am": {"mask_lr": 0.02, "lr": 0.02, "mask_steps": 20}, "doge_am": {"matrices": "attn_mlp", "delta_steps": 3},
    "metamerging": {"lr": 0.05, "adapter_lr": 0.02, "rank": 3, "adapter_steps": 15}, "wemoe": {"lr": 0.02},
    "surgery": {"lr": 0.02, "rank": 3}, "surgery_v2": {"lr": 0.02, "rank": 3}, "prob_surgery": {"lr": 0.02, "hidden": 4},
    "twin_merging": {"lr": 0.02}, "traditional_mtl": {"lr": 0.02, "warmup": 5}, "awd_am": {"awd_steps": 3},
    "map": {"metric": "loss"},
}
"""Hyperparameters of methods that need others than a learning rate of 0.02."""


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = torch.nn.Linear(10, 10)
        self.mlp = torch.nn.Linear(10, 10)
        self.ln = torch.nn.LayerNorm(10)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.ln(states + self.drop(self.mlp(torch.tanh(self.attn(states)))))


class Encoder(torch.nn.Module):
    """Inputs [B, 12] as three tokens of four numbers; two blocks; the mean token as features [B, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(4, 10)
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.proj = torch.nn.Linear(10, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        states = self.embed(inputs.view(len(inputs), 3, 4))
        for block in self.blocks:
            states = block(states)
        return self.proj(states.mean(1))


def job(
    method: str, steps: int, checkpoint: Path | None = None, stop_at: int = -1, stop: Callable[[], None] = lambda: None,
    precision: str = "32-true", **hyperparameters: Any,
) -> dict[str, Any]:
    """Run a method for some steps and return all that it leaves; `stop` is called when step `stop_at` is about to begin."""
    generator = torch.Generator().manual_seed(0)
    model = Encoder()
    pretrained = {name: torch.randn(t.shape, generator=generator) for name, t in model.state_dict().items()}
    experts = {
        task: {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in pretrained.items()} for task in TASKS
    }
    weights = {task: torch.randn(8, 5, generator=generator) for task in TASKS}
    heads = {task: (lambda features, weight=weight: features @ weight) for task, weight in weights.items()}
    inputs = {task: torch.randn(64, 12, generator=generator) for task in TASKS}
    entry = registry.get(method, learning=True)
    configured = entry.configure(**{**RATES.get(method, {"lr": 0.02}), **hyperparameters})
    procedure = entry.function(Experts(pretrained, experts), configured)(
        Context(model, heads, steps, example=inputs["one"][:1])
    )

    def examples(task: str, rows: slice) -> Examples:
        labels = torch.arange(64)[rows] % 5 if procedure.reads_labels else None
        return Examples(inputs[task][rows], procedure.precomputed(task, inputs[task][rows]), labels)

    def batches_of(step: int) -> list[dict[str, Examples]]:
        if step == stop_at:
            stop()
        starts = [(draw.number * 7 + 3 * len(draw.role)) % 48 for draw in procedure.draws(step)]
        return [{task: examples(task, slice(start, start + 16)) for task in own_tasks(TASKS)} for start in starts]

    def predict(adapted, tasks):
        with torch.no_grad():
            logits = {task: heads[task](adapted.encode(task, examples(task, slice(None)))) for task in tasks}
        predictions = {task: rows.argmax(-1).numpy() for task, rows in logits.items()}
        return {task: TaskResult(p, np.arange(64) % 5) for task, p in predictions.items()}

    def held_out(tasks):
        return {task: examples(task, slice(48, None)) for task in tasks}

    evaluations, trajectory = Evaluations(predict, 10, steps, held_out), Trajectory(5)
    settings = FitSettings(checkpoint=checkpoint, checkpoint_every=4, precision=precision)
    module = fit(procedure, batches_of, steps, settings, [evaluations, trajectory])
    kept = ("values", "held_out_losses", "predictions", "chosen", "learned")
    return {
        "coefficients": procedure.coefficients(), "masks": procedure.masks(), "final": procedure.learned(),
        "losses": module.history.losses, "task_losses": module.history.task_losses,
        "trajectory": (trajectory.steps, trajectory.coefficients),
        **{name: getattr(evaluations, name) for name in kept},
    }


def main(out: str, method: str, steps: int, checkpoint: str | None = None, stop_at: int = -1) -> None:
    torch.set_num_threads(1)
    found = job(
        method, steps, Path(checkpoint) if checkpoint else None, stop_at, lambda: os.kill(os.getpid(), signal.SIGKILL)
    )
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(found, out)


if __name__ == "__main__":
    out, method, steps, *rest = sys.argv[1:]
    main(out, method, int(steps), *(rest[:1] or [None]), *map(int, rest[1:2]))
