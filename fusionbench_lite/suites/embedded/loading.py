"""The embedded suite, loaded: tasks, experts and heads on the device of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from fusionbench_lite import models
from fusionbench_lite.base.devices import device_of
from fusionbench_lite.base.progress import Progress
from fusionbench_lite.data import TaskData, load_task, reads_files
from fusionbench_lite.evaluation.evaluator import Evaluator
from fusionbench_lite.evaluation.suite import Suite
from fusionbench_lite.finetuning import zoo
from fusionbench_lite.finetuning.embedded import recipe_of
from fusionbench_lite.finetuning.options import Trained
from fusionbench_lite.suites import Wanted
from fusionbench_lite.suites.embedded import corruption_of


def load(wanted: Wanted, progress: Progress) -> Suite:
    """Return the suite of a checked request."""
    device, seed = device_of(wanted.device), wanted.checkpoints_seed
    data = {}
    for number, name in enumerate(wanted.tasks):
        progress("loading tasks", number, len(wanted.tasks))
        data[name] = load_task(name, data_dir=wanted.data_dir, seed=seed, cache_dir=wanted.cache)
    progress("loading tasks", len(wanted.tasks), len(wanted.tasks))
    judged = _limited(data, wanted.limit)
    chosen = corruption_of(wanted)
    if chosen is not None:
        from fusionbench_lite.data.corrupted import corrupted

        judged = {name: corrupted(entry, *chosen, wanted.seed) for name, entry in judged.items()}
    files = any(reads_files(name, wanted.data_dir) for name in wanted.tasks)
    recipe = recipe_of(wanted.tasks, files=files, changes=dict(wanted.recipe))
    if wanted.checkpoints is not None:
        trained = zoo.load_from(wanted.checkpoints, list(wanted.tasks), recipe.head_scale)
    else:
        trained = zoo.load_or_build(wanted.model, data, wanted.cache, seed, recipe, progress)
    model = models.build(wanted.model).to(device).eval()
    heads = {task: head.to(device) for task, head in trained.heads.items()}
    evaluator = Evaluator(
        data=judged, heads=heads, device=device, batch_size=wanted.eval_batch,
        bf16=wanted.precision == "bf16",
    )
    return Suite(
        family="embedded" if wanted.checkpoints is None else "own files", tasks=evaluator.data,
        data_hashes={name: entry.sha256 for name, entry in (data if chosen is None else judged).items()}, files=trained.files,
        expert_hashes={task: trained.files[zoo.expert_file(task)] for task in wanted.tasks},
        head_hashes=dict.fromkeys(wanted.tasks, trained.files["heads.safetensors"]), pretrained=_on(trained.pretrained, device),
        experts={task: _on(weights, device) for task, weights in trained.experts.items()},
        multitask=_on(trained.multitask, device) if trained.multitask is not None else None, model=model, evaluator=evaluator,
        device=device, folder=trained.path,
        caveats=tuple(dict.fromkeys(note for entry in judged.values() for note in entry.caveats)),
    )


def train(wanted: Wanted, progress: Progress) -> Trained:
    """Train what the cache lacks and evaluate all models."""
    suite = load(wanted, progress)
    rows = {
        "pretrained": suite.evaluate(suite.encoder(suite.pretrained)),
        "individual": {task: suite.judge(task, suite.encoder(weights)) for task, weights in suite.experts.items()},
    }
    if suite.multitask is not None:
        rows["traditional_mtl"] = suite.evaluate(suite.encoder(suite.multitask))
    return Trained("the experts", rows, suite.folder)


def _limited(data: Mapping[str, TaskData], limit: int | None) -> dict[str, TaskData]:
    return {
        name: dataclasses.replace(entry, test_images=entry.test_images[:limit], test_labels=entry.test_labels[:limit])
        for name, entry in data.items()
    }


def _on(weights: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in weights.items()}
