"""How long a user waits for the first step of a run whose inputs are cached: `python -m benchmarks.first_step --help`.

Each run is a process of its own. A first one fills the caches; of the others the time of every stage up to the first step is taken,
the evaluation of the start left out. Experts of CLIP have random weights at the published size, in a folder as
`checkpoints=own` reads it; those of vit_mini are trained for one step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("imports", "configuration", "load", "merge", "adapt")
METHOD = "adamerging_layerwise"
IMAGES = 8
CHILD = """
import json, os, sys, time
started = float(os.environ["STARTED"])
spent = {}
def timed(module, name, stage):
    function = getattr(module, name)
    def call(*given, **named):
        begin = time.time()
        try:
            return function(*given, **named)
        finally:
            spent[stage] = spent.get(stage, 0.0) + time.time() - begin
    setattr(module, name, call)
from fusionbench_lite.planning import plan
from fusionbench_lite.__main__ import main
from fusionbench_lite.running import application, run
from fusionbench_lite.adaptation.engine import fit
spent["imports"] = time.time() - started
timed(plan, "resolve", "configuration")
sys.argv[0] = "fusionbench_lite"
status = main()
json.dump(spent, open(os.environ["SPENT"], "w"))
sys.exit(status)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model and the arguments of its run."""

    model: str
    line: Sequence[str]


def mini(folder: Path) -> Case:
    """Return a run of vit_mini on eight drawn tasks."""
    recipe = "checkpoints.recipe={pretrain_steps: 1, finetune_steps: 1, multitask_steps: 1}"
    return Case(model="vit_mini", line=["model=vit_mini", "tasks=mini8", recipe])


def clip(folder: Path, model: str, tasks: int) -> Case:
    """Return a run of a CLIP model of the published size on the first of the standard tasks, whose files are written here."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from benchmarks import full_size_problem as problem
    from fusionbench_lite.data import vision
    from fusionbench_lite.models import clip as models
    from fusionbench_lite.models import prompts

    size, names = problem.SIZES[model], problem.task_names(tasks)
    shapes = models.shapes(size, "packed")
    drawn = problem.noise(shapes, torch.device("cpu"))
    own, data = folder / "own", folder / "data"
    own.mkdir()
    data.mkdir()
    for name in ("pretrained", *(f"individual-{task}" for task in names)):
        weights = problem.Drawn(shapes, drawn, None if name == "pretrained" else name.removeprefix("individual-"))
        save_file({key: weights[key].contiguous() for key in weights}, own / f"{name}.safetensors")
    heads = {task: head.weight.detach().clone() for task, head in problem.heads(size, names, torch.device("cpu")).items()}
    save_file(heads, own / "heads.safetensors")
    for task in names:
        about = vision.task(task, "tall")
        images = np.random.default_rng(0).integers(0, 256, (IMAGES, 64, 64, 3), dtype=np.uint8)
        labels = np.arange(IMAGES) % about.classes
        np.savez(data / f"{task}.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
        classes = list(prompts.prompts(task, "tall").classnames)
        (data / f"{task}.json").write_text(json.dumps({"name": task, "num_classes": about.classes, "classes": classes}))
    places = [f"checkpoints.dir={own}", f"data_dir={data}"]
    return Case(model=model, line=[f"model={model}", f"tasks=[{','.join(names)}]", "checkpoints=own", *places])


def measure(case: Case, folder: Path, repeats: int) -> list[dict[str, float]]:
    """Return the seconds of every stage of some runs, after one that fills the caches."""
    line = [
        f"method={METHOD}", *case.line, "steps=1", f"limit={IMAGES}", "method.adaptation.batch_size=1", "overwrite=true",
        "method.adaptation.held_out=0", f"results_dir={folder / 'results'}", f"cache_dir={folder / 'cache'}",
    ]
    return [_run(line, folder) for _ in range(repeats + 1)][1:]


def _run(line: Sequence[str], folder: Path) -> dict[str, float]:
    import time

    spent = folder / "spent.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STARTED": str(time.time()), "SPENT": str(spent)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *line], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}:\n{done.stderr}")
    (result,) = (folder / "results" / "records").glob("*/result.json")
    seconds: Mapping[str, Any] = json.loads(result.read_text())["seconds"]
    return {**json.loads(spent.read_text()), **{stage: seconds[stage] for stage in ("load", "merge", "adapt")}}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser("python -m benchmarks.first_step", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vit_mini", "vit_b32"], help="default: %(default)s")
    parser.add_argument("--tasks", type=int, default=8, help="of CLIP models; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    given = parser.parse_args(arguments)
    print(f"| model | {' | '.join(STAGES)} | until the first step is done |\n|---|{'---:|' * (len(STAGES) + 1)}")
    for model in given.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            case = mini(folder) if model == "vit_mini" else clip(folder, model, given.tasks)
            runs = measure(case, folder, given.repeats)
        medians = [statistics.median(run[stage] for run in runs) for stage in STAGES]
        total = statistics.median(sum(run[stage] for stage in STAGES) for run in runs)
        print(f"| {model} | {' | '.join(f'{value:.1f} s' for value in medians)} | {total:.1f} s |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
