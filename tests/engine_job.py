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
from fusionbench_lite.weights.experts import Experts

TASKS = ("one", "two", "three")


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

    def batch_of(step: int) -> dict[str, torch.Tensor]:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return {task: inputs[task][(step * 7) % 48 :][:16] for task in own_tasks(TASKS)}

    def predict(encode, tasks):
        with torch.no_grad():
            predictions = {task: heads[task](encode(inputs[task])).argmax(-1).numpy() for task in tasks}
        return {task: (p, p == np.arange(64) % 5) for task, p in predictions.items()}

    view = Experts(pretrained, experts)
    entry = registry.get(method)
    learning_rate = {"lr": 0.02}
    parametrisation = entry.function(view, entry.configure(**learning_rate))
    evaluations = Evaluations(predict, every=10, steps=steps)
    settings = Settings(checkpoint=Path(checkpoint) if checkpoint else None, checkpoint_every=4)
    module = fit(parametrisation, model, heads, batch_of, steps, settings, [evaluations])
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(
            {
                "coefficients": parametrisation.named_coefficients(), "masks": parametrisation.named_masks(),
                "losses": module.history.losses, "task_losses": module.history.task_losses,
                "accuracies": evaluations.accuracies, "kept": evaluations.kept, "merged": parametrisation.merged(),
            },
            out,
        )


if __name__ == "__main__":
    out, method, steps, *rest = sys.argv[1:]
    main(out, method, int(steps), *(rest[:1] or [None]), *map(int, rest[1:2]))
