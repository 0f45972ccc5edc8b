"""A small adaptation run from a file: used by the resume and the two-process tests.

    python engine_job.py OUT.pt METHOD STEPS [CHECKPOINT] [STOP_AT]

With STOP_AT the process kills itself with SIGKILL when that step is about to begin.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.evaluations import Evaluations
from fusionbench_lite.adaptation.engine.fit import Settings, fit
from fusionbench_lite.adaptation.engine.module import own_tasks
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.weights.experts import Experts

TASKS = ("one", "two", "three")
SETTINGS: dict[str, dict[str, object]] = {}
"""Hyperparameters of methods that do not take a learning rate of 0.02 alone."""


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = torch.nn.Linear(12, 10)
        self.mlp = torch.nn.Linear(10, 8)
        self.ln = torch.nn.LayerNorm(8)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.ln(self.drop(self.mlp(torch.tanh(self.attn(inputs)))))


def main(out: str, method: str, steps: int, checkpoint: str | None = None, stop_at: int = -1) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = Encoder()
    pretrained = {name: torch.randn(t.shape, generator=generator) for name, t in model.state_dict().items()}
    experts = {
        task: {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in pretrained.items()} for task in TASKS
    }
    weights = {task: torch.randn(8, 5, generator=generator) for task in TASKS}
    heads = {task: (lambda features, weight=weight: features @ weight) for task, weight in weights.items()}
    inputs = {task: torch.randn(64, 12, generator=generator) for task in TASKS}

    view = Experts(pretrained, experts)
    entry = registry.get(method)
    procedure = entry.function(view, entry.configure(**SETTINGS.get(method, {"lr": 0.02})))(Context(model, heads, steps))

    def examples(task: str, rows: slice) -> Examples:
        labels = torch.arange(64)[rows] % 5 if procedure.reads_labels else None
        return Examples(inputs[task][rows], procedure.known(task, inputs[task][rows]), labels)

    def batches_of(step: int) -> list[dict[str, Examples]]:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        starts = [(draw.number * 7 + 3 * len(draw.role)) % 48 for draw in procedure.draws(step)]
        return [{task: examples(task, slice(start, start + 16)) for task in own_tasks(TASKS)} for start in starts]

    def predict(adapted, tasks):
        with torch.no_grad():
            logits = {task: heads[task](adapted.encode(task, examples(task, slice(None)))) for task in tasks}
        predictions = {task: rows.argmax(-1).numpy() for task, rows in logits.items()}
        return {task: (p, p == np.arange(64) % 5) for task, p in predictions.items()}

    def held_out(tasks):
        return {task: examples(task, slice(48, None)) for task in tasks}

    evaluations = Evaluations(predict, 10, steps, held_out)
    settings = Settings(checkpoint=Path(checkpoint) if checkpoint else None, checkpoint_every=4)
    module = fit(procedure, batches_of, steps, settings, [evaluations])
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(
            {
                "coefficients": procedure.coefficients(), "masks": procedure.masks(), "learned": procedure.learned(),
                "losses": module.history.losses, "task_losses": module.history.task_losses,
                **{name: getattr(evaluations, name) for name in ("accuracies", "held_out_losses", "predictions", "chosen")},
                "best": evaluations.learned,
            },
            out,
        )


if __name__ == "__main__":
    out, method, steps, *rest = sys.argv[1:]
    main(out, method, int(steps), *(rest[:1] or [None]), *map(int, rest[1:2]))
