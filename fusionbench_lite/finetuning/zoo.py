"""The zoo of a task set: pretrained model, one expert per task, a multi-task model and the frozen heads.

    <cache>/zoo/<model>-<key>/pretrained.safetensors, individual-<task>.safetensors, traditional_mtl.safetensors,
                              heads.safetensors, manifest.json

The key covers everything that decides the weights. The manifest holds the SHA-256 of every file and is compared at
every load: a damaged or missing file is trained again, alone, to the same bits. A build that was interrupted keeps
what was finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusionbench_lite import models
from fusionbench_lite.base.randomness import seed_of
from fusionbench_lite.data import TaskData
from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning.embedded import Course, Recipe, Report, ambiguous_targets, scaled, threads, train
from fusionbench_lite.models.heads import ZeroShotHead, random_embeddings
from fusionbench_lite.paths import atomic_file, file_sha256, locked

log = logging.getLogger(__name__)

VERSION = 1
"""Changes when the same recipe no longer gives the same weights."""
MANIFEST = "manifest.json"
MULTITASK = "traditional_mtl.safetensors"
StateDict = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zoo:
    """Weights of a task set. `files` maps file names to SHA-256; `multitask` is None where there is none."""

    pretrained: StateDict
    experts: dict[str, StateDict]
    multitask: StateDict | None
    heads: dict[str, nn.Module]
    files: dict[str, str]
    path: Path


def load_or_build(
    model: str, data: Mapping[str, TaskData], cache: Path, seed: int, recipe: Recipe, report: Report
) -> Zoo:
    """Return the zoo of these tasks, training what is missing or damaged.

    Two processes that need the same zoo take turns: the second waits and finds it built. Raises InputError when the
    cache cannot be written.
    """
    folder = cache / "zoo" / f"{model}-{_key(model, data, seed, recipe)}"
    with locked(folder.with_suffix(".lock")):
        builder = _Builder(model, data, folder, seed, recipe, report)
        builder.build()
    return _load(folder, list(data), recipe.head_scale)


def load_from(folder: Path, tasks: list[str], head_scale: float) -> Zoo:
    """Return a zoo of the user's own files; only traditional_mtl.safetensors may be missing."""
    if not folder.is_dir():
        raise InputError(f"checkpoints.dir {folder} is not a directory: give the folder of pretrained.safetensors")
    return _load(folder, tasks, head_scale)


def expert_file(task: str) -> str:
    """Return the file name of a task's expert."""
    return f"individual-{task}.safetensors"


def _key(model: str, data: Mapping[str, TaskData], seed: int, recipe: Recipe) -> str:
    content = {
        "version": VERSION, "model": model, "seed": seed, "recipe": recipe.known_by(),
        "data": {task: entry.sha256 for task, entry in sorted(data.items())}, "torch": torch.__version__,
        "threads": threads(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class _Builder:
    """Trains the files of one zoo that its manifest does not vouch for."""

    def __init__(
        self, model: str, data: Mapping[str, TaskData], folder: Path, seed: int, recipe: Recipe, report: Report
    ) -> None:
        # One order for the sums of the joint trainings, whatever order the tasks were named in.
        self.data = {task: data[task] for task in sorted(data)}
        self.model_name, self.folder, self.seed, self.recipe, self.report = model, folder, seed, recipe, report
        self.manifest = _read_manifest(folder)
        width = models.feature_width(model)
        self.embeddings = {
            task: random_embeddings(entry.num_classes, width, seed_of(seed, task, "head"))
            for task, entry in self.data.items()
        }

    def build(self) -> None:
        """Train what is missing or damaged."""
        wanted = ["heads.safetensors", "pretrained.safetensors", *map(expert_file, self.data), MULTITASK]
        missing = [name for name in wanted if not self._is_sound(name)]
        if not missing:
            return
        heads = {task: ZeroShotHead(rows, self.recipe.head_scale) for task, rows in self.embeddings.items()}
        if "heads.safetensors" in missing:
            self._keep("heads.safetensors", self.embeddings, 0.0)
        model = self._fresh_model()
        if "pretrained.safetensors" in missing:
            before = self._entry("pretrained.safetensors")
            self._pretrain(model, heads)
            if before not in (None, self._entry("pretrained.safetensors")):
                log.warning("%s: pretraining gave other bits than before: all experts are trained again", self.folder)
                missing = wanted
        pretrained, recipe = load_file(self.folder / "pretrained.safetensors"), self.recipe
        for task in self.data:
            if expert_file(task) in missing:
                course = self._course(f"individual {task}", recipe.finetune_steps, recipe.finetune_batch, recipe.finetune_lr)
                self._finetune(model, pretrained, heads, [task], course, expert_file(task))
        if MULTITASK in missing:
            course = self._course("traditional_mtl", recipe.multitask_steps, recipe.multitask_batch, recipe.multitask_lr)
            self._finetune(model, pretrained, heads, list(self.data), course, MULTITASK)

    def _pretrain(self, model: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        recipe, start = self.recipe, time.perf_counter()
        targets = {
            task: ambiguous_targets(entry.num_classes, recipe.ambiguity, self.seed, task)
            for task, entry in self.data.items()
        }
        course = self._course("pretrained", recipe.pretrain_steps, recipe.pretrain_batch, recipe.pretrain_lr)
        if recipe.pretrain_warmup is not None:
            course = dataclasses.replace(course, warmup=recipe.pretrain_warmup)
        train(model, heads, self.data, recipe, course, self.seed, self.report, targets)
        self._keep("pretrained.safetensors", model.state_dict(), time.perf_counter() - start)

    def _course(self, name: str, steps: int, batch: int, lr: float) -> Course:
        return Course(name=name, steps=steps, batch=batch, lr=lr, warmup=self.recipe.warmup)

    def _finetune(
        self, model: nn.Module, pretrained: StateDict, heads: Mapping[str, nn.Module], tasks: list[str], course: Course,
        name: str,
    ) -> None:
        start = time.perf_counter()
        model.load_state_dict(pretrained)
        data = {task: self.data[task] for task in tasks}
        train(model, heads, data, self.recipe, course, self.seed, self.report)
        self._keep(name, model.state_dict(), time.perf_counter() - start)

    def _fresh_model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, self.model_name, "initialisation") % 2**63)
            return scaled(models.build(self.model_name), self.recipe)

    def _keep(self, name: str, tensors: Mapping[str, Tensor], seconds: float) -> None:
        with atomic_file(self.folder / name) as temporary:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)
        self.manifest["files"][name] = {"sha256": file_sha256(self.folder / name), "seconds": round(seconds, 1)}
        self.manifest |= {
            "model": self.model_name, "seed": self.seed, "recipe": dataclasses.asdict(self.recipe),
            "data": {task: entry.sha256 for task, entry in self.data.items()}, "torch": torch.__version__,
        }
        with atomic_file(self.folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(self.manifest, indent=1) + "\n")

    def _entry(self, name: str) -> str | None:
        entry = self.manifest["files"].get(name)
        return entry["sha256"] if entry else None

    def _is_sound(self, name: str) -> bool:
        path, expected = self.folder / name, self._entry(name)
        if expected is None:
            return False
        if path.is_file() and file_sha256(path) == expected:
            return True
        log.warning("%s is %s: training it again", path, "damaged" if path.is_file() else "gone")
        return False


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        manifest["files"] = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {"files": {}}
    return manifest


def _load(folder: Path, tasks: list[str], head_scale: float) -> Zoo:
    names = ["pretrained.safetensors", "heads.safetensors", *map(expert_file, tasks)]
    if (folder / MULTITASK).is_file():
        names.append(MULTITASK)
    weights = {name: _read(folder / name) for name in names}
    embeddings = weights["heads.safetensors"]
    for task in tasks:
        if task not in embeddings:
            raise InputError(
                f"{folder / 'heads.safetensors'} has no class embeddings of task {task!r}: add [C, d] under its name"
            )
    return Zoo(
        pretrained=weights["pretrained.safetensors"], experts={task: weights[expert_file(task)] for task in tasks},
        multitask=weights.get(MULTITASK), heads={task: ZeroShotHead(embeddings[task], head_scale) for task in tasks},
        files={name: file_sha256(folder / name) for name in sorted(names)}, path=folder,
    )


def _read(path: Path) -> StateDict:
    if not path.is_file():
        raise InputError(f"{path} is missing: put the file there, or leave checkpoints.dir out to train the experts")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no readable safetensors file ({str(error).splitlines()[0]}): copy it again") from error
