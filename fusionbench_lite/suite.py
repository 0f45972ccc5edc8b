"""What a run works on: data, experts, heads and the encoder, loaded once per process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite import models, zoo
from fusionbench_lite.data import TaskData, load_task, reads_files
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.evaluator import Evaluator
from fusionbench_lite.paths import cache_dir
from fusionbench_lite.plan import Plan
from fusionbench_lite.progress import Progress
from fusionbench_lite.training import DRAWN, FILES, recipe_with

StateDict = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Suite:
    """Data, weights and model of a run. `files` maps the checkpoint files of `folder` to their SHA-256."""

    family: str
    data: Mapping[str, TaskData]
    data_hashes: Mapping[str, str]
    files: Mapping[str, str]
    pretrained: StateDict
    experts: Mapping[str, StateDict]
    multitask: StateDict | None
    model: nn.Module
    evaluator: Evaluator
    device: torch.device
    folder: Path

    def encoder(self, weights: StateDict) -> Callable[[Tensor], Tensor]:
        """Return the encoder with these weights, in evaluation mode."""

        def encode(inputs: Tensor) -> Tensor:
            output: Tensor = torch.func.functional_call(self.model, dict(weights), (inputs,))
            return output

        return encode


def load(plan: Plan, progress: Progress) -> Suite:
    """Return the suite of a plan, building the embedded experts on first use; the latest suite is kept."""
    wanted = Wanted(
        plan.model, plan.tasks.names, plan.data_dir, cache_dir(plan.cache_dir), plan.checkpoints_seed,
        tuple(sorted((plan.checkpoints["recipe"] or {}).items())),
        Path(plan.checkpoints["dir"]).expanduser() if plan.checkpoints["dir"] else None, plan.limit, plan.device,
    )
    if wanted not in _latest:
        _latest.clear()
        _latest[wanted] = _load(wanted, progress)
    return _latest[wanted]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What decides which suite a run works on."""

    model: str
    tasks: tuple[str, ...]
    data_dir: Path | None
    cache: Path
    seed: int
    recipe: tuple[tuple[str, Any], ...]
    checkpoints: Path | None
    limit: int | None
    device: str


_latest: dict[Wanted, Suite] = {}


def _load(wanted: Wanted, progress: Progress) -> Suite:
    device = device_of(wanted.device)
    data = {}
    for number, name in enumerate(wanted.tasks):
        progress("loading tasks", number, len(wanted.tasks))
        data[name] = load_task(name, data_dir=wanted.data_dir, seed=wanted.seed, cache_dir=wanted.cache)
    progress("loading tasks", len(wanted.tasks), len(wanted.tasks))
    base = FILES if any(reads_files(name, wanted.data_dir) for name in wanted.tasks) else DRAWN
    recipe = recipe_with(base, dict(wanted.recipe))
    if wanted.checkpoints is not None:
        found = zoo.load_from(wanted.checkpoints, list(wanted.tasks), recipe.head_scale)
    else:
        found = zoo.load_or_build(wanted.model, data, wanted.cache, wanted.seed, recipe, progress)
    model = models.build(wanted.model).to(device).eval()
    evaluator = Evaluator(_limited(data, wanted.limit), {t: head.to(device) for t, head in found.heads.items()}, device)
    return Suite(
        "embedded" if wanted.checkpoints is None else "own files", evaluator.data,
        {name: entry.sha256 for name, entry in data.items()}, found.files, _on(found.pretrained, device),
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
    """Return the device of this name; "auto" takes the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device={name}, but this machine has no GPU that torch can use: set device=cpu")
    return torch.device(name)
