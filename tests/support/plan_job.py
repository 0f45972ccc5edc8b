"""Peak resident memory of an adaptation, in a process of its own, phase by phase: `python -m tests.support.plan_job JSON`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Memory
from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.fit import fit
from fusionbench_lite.adaptation.engine.placement import placing
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.models import clip
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.placed import PlacedWeights
from fusionbench_lite.weights.readers import SafetensorsWeights

TINY = clip.ClipSize(image=64, patch=32, width=64, layers=2, heads=2, output=64, text_width=64, text_layers=2, text_heads=2)
CLASSES = 10


def write(folder: Path, size: clip.ClipSize, layout: str, tasks: int) -> None:
    """Write a pretrained model and its experts, random ones."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = clip.build(size, layout).requires_grad_(False)
    base = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    folder.mkdir()
    save_file(base, folder / "pretrained.safetensors")
    for task in range(tasks):
        save_file({name: t + 1e-3 * torch.randn_like(t) for name, t in base.items()}, folder / f"task{task}.safetensors")


class Phases:
    """The peak beyond what was held at the start, of each phase as it ends."""

    def __init__(self) -> None:
        self.memory, self.peaks = Memory(torch.device("cpu")), {}
        self.held = self.memory.start()

    def end(self, phase: str) -> None:
        """Note the peak since the last phase ended."""
        self.peaks[phase] = self.memory.peak() - self.held
        self.memory.start()


def run(folder: Path, size: clip.ClipSize, job: dict[str, Any]) -> dict[str, int]:
    """Load, build, step and evaluate; return the phases' peaks."""
    phases = Phases()
    model = clip.build(size, job["layout"]).requires_grad_(False)
    files = {path.stem: PlacedWeights(SafetensorsWeights(path), "cpu", job["experts"]) for path in sorted(folder.iterdir())}
    experts = Experts(files.pop("pretrained"), files)
    experts.check_unread()
    phases.end("load")
    entry = registry.get(job["method"], learning=True)
    heads = {task: ZeroShotHead(torch.nn.functional.normalize(torch.randn(CLASSES, size.output)), 100.0) for task in files}

    def images(count: int) -> torch.Tensor:
        return torch.rand(count, 3, size.image, size.image)

    with placing(job["place"], folder.parent / "scratch"):
        learner = entry.function(experts, entry.configure(**job["values"]))
        procedure = learner(Context(model, heads, job["steps"], job["chunk"], example=images(1)))
    phases.end("build")

    def examples(task: str, count: int) -> Examples:
        given = images(count)
        return Examples(given if procedure.reads_inputs else None, procedure.precomputed(task, given))

    def batches(step: int) -> list[dict[str, Examples]]:
        return [{task: examples(task, draw.size or job["batch"]) for task in files} for draw in procedure.draws(step)]

    fit(procedure, batches, job["steps"])
    phases.end("step")
    procedure.refresh(job["steps"])
    with torch.inference_mode():
        for task in files:
            given = images(job["eval_batch"])
            procedure.encode(task, Examples(given, procedure.precomputed(task, given)))
    phases.end("evaluate")
    return phases.peaks


def main(job: dict[str, Any]) -> dict[str, int]:
    """Run the job once with a tiny model, for what any run imports and allocates, then measure it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(job["folder"])
    write(folder / "tiny", TINY, job["layout"], 2)
    write(folder / "weights", clip.ClipSize(**job["size"]), job["layout"], job["tasks"])
    run(folder / "tiny", TINY, {**job, "eval_batch": 2, "batch": 1})
    return run(folder / "weights", clip.ClipSize(**job["size"]), job)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
