"""What a run works on: data, experts, heads and the encoder, loaded once per process."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite import models
from fusionbench_lite.base.progress import Progress
from fusionbench_lite.data import TaskData, load_task, reads_files
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.evaluator import Evaluator
from fusionbench_lite.finetuning import zoo
from fusionbench_lite.finetuning.embedded import DRAWN, FILES, recipe_with
from fusionbench_lite.models.modes import with_weights
from fusionbench_lite.paths import cache_dir
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.resources import planned
from fusionbench_lite.suites.backbones import Backbone

StateDict = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Suite:
    """Data, weights and model of a run.

    `files` maps the checkpoint files to their SHA-256, `expert_hashes` and `head_hashes` tasks to those of their own;
    `sources` says where files come from, `caveats` what a reader of the results should know about them. `folder` holds
    the files of the run, None where they lie in several; `place` is where what methods make of the experts stays,
    `chunk` the number of images in one forward pass of an adaptation, None for all.
    `constants` are tensors of the model that experts do not have, as FusionBench's projection.
    """

    family: str
    data: Mapping[str, TaskData]
    data_hashes: Mapping[str, str]
    files: Mapping[str, str]
    expert_hashes: Mapping[str, str]
    head_hashes: Mapping[str, str]
    pretrained: StateDict
    experts: Mapping[str, StateDict]
    multitask: StateDict | None
    model: nn.Module
    evaluator: Evaluator
    device: torch.device
    folder: Path | None = None
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    place: str = "device"
    chunk: int | None = None
    constants: frozenset[str] = frozenset()

    def encoder(self, weights: StateDict) -> Callable[[Tensor], Tensor]:
        """Return the encoder with these weights, in evaluation mode."""
        return with_weights(self.model, weights)


def load(plan: Plan, progress: Progress) -> Suite:
    """Return the suite of a plan, building the embedded experts on first use; the latest suite is kept.

    Where experts stay and how many images run at once is decided here, once, and said before anything is loaded.
    """
    place, chunk = planned.decided(plan, device_of(plan.device))
    wanted = wanted_of(plan)
    if wanted not in _latest:
        _latest.clear()
        if plan.backbone.is_clip:
            from fusionbench_lite.suites import clip

            _latest[wanted] = clip.load(wanted, progress)
        else:
            _latest[wanted] = _embedded(wanted, progress)
    return dataclasses.replace(_latest[wanted], place=place, chunk=chunk)


def wanted_of(plan: Plan) -> Wanted:
    """Return what decides which suite the plan works on."""
    return Wanted(
        plan.backbone, plan.tasks.names, plan.data_dir, cache_dir(plan.cache_dir), plan.seed, plan.checkpoints_seed,
        tuple(sorted((plan.checkpoints["recipe"] or {}).items())), _path(plan.checkpoints["dir"]),
        _path(plan.checkpoints["manifest"]), tuple(sorted(plan.data.items())), plan.limit, plan.device, plan.precision,
        plan.trainer["eval_batch"],
    )


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What decides which suite a run works on."""

    backbone: Backbone
    tasks: tuple[str, ...]
    data_dir: Path | None
    cache: Path
    seed: int
    checkpoints_seed: int
    recipe: tuple[tuple[str, Any], ...]
    checkpoints: Path | None
    manifest: Path | None
    data: tuple[tuple[str, Any], ...]
    limit: int | None
    device: str
    precision: str
    batch_size: int | None


_latest: dict[Wanted, Suite] = {}


def _path(name: str | None) -> Path | None:
    return Path(name).expanduser() if name else None


def _embedded(wanted: Wanted, progress: Progress) -> Suite:
    device, seed = device_of(wanted.device), wanted.checkpoints_seed
    data = {}
    for number, name in enumerate(wanted.tasks):
        progress("loading tasks", number, len(wanted.tasks))
        data[name] = load_task(name, data_dir=wanted.data_dir, seed=seed, cache_dir=wanted.cache)
    progress("loading tasks", len(wanted.tasks), len(wanted.tasks))
    base = FILES if any(reads_files(name, wanted.data_dir) for name in wanted.tasks) else DRAWN
    recipe, model_name = recipe_with(base, dict(wanted.recipe)), wanted.backbone.model
    if wanted.checkpoints is not None:
        found = zoo.load_from(wanted.checkpoints, list(wanted.tasks), recipe.head_scale)
    else:
        found = zoo.load_or_build(model_name, data, wanted.cache, seed, recipe, progress)
    model = models.build(model_name).to(device).eval()
    heads = {task: head.to(device) for task, head in found.heads.items()}
    evaluator = Evaluator(
        _limited(data, wanted.limit), heads, device, wanted.batch_size, bf16=wanted.precision == "bf16"
    )
    return Suite(
        "embedded" if wanted.checkpoints is None else "own files", evaluator.data,
        {name: entry.sha256 for name, entry in data.items()}, found.files,
        {task: found.files[zoo.expert_file(task)] for task in wanted.tasks},
        dict.fromkeys(wanted.tasks, found.files["heads.safetensors"]), _on(found.pretrained, device),
        {task: _on(weights, device) for task, weights in found.experts.items()},
        _on(found.multitask, device) if found.multitask is not None else None, model, evaluator, device,
        found.path,
    )


def _limited(data: Mapping[str, TaskData], limit: int | None) -> dict[str, TaskData]:
    return {
        name: dataclasses.replace(entry, test_images=entry.test_images[:limit], test_labels=entry.test_labels[:limit])
        for name, entry in data.items()
    }


def _on(weights: StateDict, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in weights.items()}


def device_of(name: str) -> torch.device:
    """Return the device of this name; "auto" takes the GPU where there is one. Of several processes each takes its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device={name}, but this machine has no GPU that torch can use: set device=cpu")
    return torch.device(name)
