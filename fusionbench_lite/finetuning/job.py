"""Fine-tuning an expert, or one model on the labels of all tasks, from a pretrained encoder under frozen zero-shot heads.

    path = finetune(model, pretrained, {"dtd": head}, {"dtd": data}, "ta", folder=Path("own"), model_name="vit_b32")

writes own/individual-dtd.safetensors beside the pretrained weights and the heads, a folder that `checkpoints=own
checkpoints.dir=own` reads. It runs on the engine of the adaptive methods: a run that was killed is continued by the same
call and ends, on a processor with the same number of threads, with the same bits.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine import fit as engine
from fusionbench_lite.adaptation.engine.module import Adaptation
from fusionbench_lite.adaptation.engine.procedure import Context
from fusionbench_lite.adaptation.learners.training import Course, Training
from fusionbench_lite.data import TaskData, decode_ahead
from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning.callbacks import Accuracies, Reports, Status
from fusionbench_lite.finetuning.checks import check_encoder, check_pools, check_tasks, originals_of
from fusionbench_lite.finetuning.folder import Folder, content_sha256, stem
from fusionbench_lite.finetuning.recipes import PRECISIONS, PROJECTIONS, FinetuneSettings, Recipe
from fusionbench_lite.finetuning.recipes import recipe as recipe_of
from fusionbench_lite.finetuning.step_images import Normalise, Pool, Rows, StepImages
from fusionbench_lite.finetuning.zoo import MULTITASK, expert_file
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.weights.experts import Experts

log = logging.getLogger(__name__)

__all__ = ["FinetuneSettings", "Recipe", "Status", "finetune"]

VERSION = 1
"""Changes when the same recipe no longer gives the same weights."""


def finetune(
    model: nn.Module, pretrained: Mapping[str, Tensor], heads: Mapping[str, ZeroShotHead], data: Mapping[str, TaskData],
    recipe: Recipe | str, settings: FinetuneSettings | None = None, *, folder: Path, model_name: str, layout: str | None = None,
    normalise: Normalise | None = None, validation: Mapping[str, Rows] | None = None,
    inputs: Mapping[str, str] | None = None, report: Callable[[Status], None] = lambda status: None,
    constants: Mapping[str, Tensor] | None = None, family: str | None = None,
) -> Path:
    """Train on the labelled training images of `data` and return the file of the result in `folder`.

    One task with a recipe of experts gives individual-<task>.safetensors, any number with "joint" (the sum of the tasks'
    mean cross entropies; docs/decisions.md, D11) traditional_mtl.safetensors. `model` is run on
    its device with `pretrained` and then with the trained weights in place of its own, which stay as they are, as do
    the heads. `normalise` turns uint8 [B, H, W, 3] into the model's inputs, CLIP's own by default. `validation` are the
    training rows of each task that are held out; where it is None and the recipe holds some out, those of
    `data.vision.validation_rows`. A recipe that crops original images reads those of `data.originals`; images in memory are
    their own. `inputs` (name to SHA-256) is noted in the manifest, and `family`, that of the published experts that the result
    stands in for. `constants` are tensors of the model that such experts do not have: they are run with, not trained, and
    in no file.

    What is there already, trained alike and undamaged, is not trained again. Raises InputError for input that does not
    fit, a folder of another base model or a file trained otherwise, and MergeError for a loss or a gradient that is not
    finite, naming the step.
    """
    place = Folder(path=folder, model=model_name, layout=layout, base="", family=family)
    job = _Job(model, pretrained, heads, data, recipe, settings or FinetuneSettings(), place, constants or {})
    if normalise is None:
        from fusionbench_lite.models.clip import normalise as clips

        normalise = clips
    job.load(normalise, validation)
    return job.run(dict(inputs or {}), report)


class _Job:
    """One fine-tuning."""

    def __init__(
        self, model: nn.Module, pretrained: Mapping[str, Tensor], heads: Mapping[str, ZeroShotHead],
        data: Mapping[str, TaskData], recipe: Recipe | str, settings: FinetuneSettings, folder: Folder,
        constants: Mapping[str, Tensor],
    ) -> None:
        self.model, self.pretrained, self.data, self.settings, self.folder = model, pretrained, data, settings, folder
        self.recipe = recipe_of(recipe) if isinstance(recipe, str) else recipe
        check_tasks(data, heads, self.recipe)
        self.device = next(model.parameters()).device
        self.heads = {task: copy.deepcopy(heads[task]).to(self.device) for task in data}
        self.name = MULTITASK if self.recipe.joint else expert_file(next(iter(data)))
        self.constants = constants
        self.folder.base = content_sha256(pretrained)

    def load(self, normalise: Normalise, validation: Mapping[str, Rows] | None) -> None:
        """Divide the training images, and see that model, weights, images and heads fit."""
        # Training is in float32 whatever the files hold; what is stored has their types again.
        self.start = {
            name: tensor.to(self.device, torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else None)
            for name, tensor in {**self.pretrained, **self.constants}.items()
        }
        check_encoder(self.model, self.start, self.data, self.heads, normalise)
        self.held_out = {task: self._held_out(task, validation) for task in self.data}
        pools = {
            task: Pool(
                entry, np.setdiff1d(np.arange(len(entry.train_labels)), self.held_out[task]), self.recipe.batch_of(task),
                originals_of(task, entry, self.recipe),
            )
            for task, entry in self.data.items()
        }
        check_pools(pools)
        self.batches = StepImages(pools, self.recipe.crop, self.settings.seed, normalise, self.device)
        self.steps = max(self.recipe.steps_of(task, len(pool.rows)) for task, pool in pools.items())
        if self.steps < 1:
            raise InputError(f"recipe {self.recipe.name!r} gives {', '.join(self.data)} {self.steps} steps: at least 1 is needed")
        self.key = self._key(pools)
        self._crops_originals = any(pool.original is not None for pool in pools.values())

    def run(self, inputs: Mapping[str, str], report: Callable[[Status], None]) -> Path:
        """Train what is missing, and return its file."""
        with self.folder.alone(self.name):
            self.folder.open(self.pretrained, self.heads)
            there = None if self.settings.overwrite else self.folder.entry(self.name)
            if there is not None:
                return self._reused(there)
            module, accuracies = self._train(report)
            path = self.folder.keep(
                self.name, self._result(module), self._entry(module, accuracies, inputs), self._history(module)
            )
            self.folder.forget_checkpoints(self.name)
            return path

    def _held_out(self, task: str, validation: Mapping[str, Rows] | None) -> Rows:
        size = len(self.data[task].train_labels)
        if validation is None:
            from fusionbench_lite.data.vision import validation_rows

            return validation_rows(size)[1] if self.recipe.held_out else np.empty(0, dtype=np.int64)
        rows = np.unique(np.asarray(validation.get(task, ()), dtype=np.int64))
        if len(rows) and (rows[0] < 0 or rows[-1] >= size):
            raise InputError(f"task {task!r}: validation rows {rows[0]} to {rows[-1]} do not fit its {size} training images")
        return rows

    def _key(self, pools: Mapping[str, Pool]) -> str:
        """Return what names everything that decides the weights, apart from versions and rounding."""
        # Which images are cropped is said for each task, as it is: the recipe's wish changes nothing for images in memory.
        recipe = {name: value for name, value in self._recipe().items() if name != "images"}
        content = {
            "version": VERSION, "base": self.folder.base, "recipe": recipe, "steps": self.steps,
            "seed": self.settings.seed, "precision": self.settings.precision,
            "tasks": {
                task: [
                    self.data[task].sha256, hashlib.sha256(pool.rows.tobytes()).hexdigest(), pool.batch,
                    content_sha256({"head": self.heads[task].weight}), self.heads[task].scale, pool.original is not None,
                ]
                for task, pool in pools.items()
            },
        }
        if self.constants:
            content["constants"] = content_sha256(self.constants)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def _recipe(self) -> dict[str, Any]:
        """Return the recipe in numbers, for these tasks alone, as a manifest holds it."""
        plain = dataclasses.asdict(self.recipe)
        batches = {task: self.recipe.batch_of(task) for task in self.data}
        kept = {name: value for name, value in plain.items() if name not in ("source", "unconfirmed", "epochs", "batches", "batch")}
        epochs = {task: number for task, number in self.recipe.epochs.items() if task in self.data}
        written: dict[str, Any] = json.loads(json.dumps({**kept, "batch": batches, "epochs": epochs}))
        return written

    def _reused(self, there: Mapping[str, Any]) -> Path:
        path = self.folder.path / self.name
        if there.get("key") != self.key:
            # Trainings that say nothing of it cropped the squares.
            was, now = {"images": "square", **there.get("recipe", {})}, self._recipe()
            if not self._crops_originals and not any(there.get("originals", {}).values()):  # the same images either way
                was["images"] = now["images"]
            other = [f"{name} {was.get(name)!r}, not {now[name]!r}" for name in now if was.get(name) != now[name]]
            what = other[0] if other else f"seed {there.get('seed')}, {there.get('steps')} steps, data or head that differ"
            raise InputError(f"{path} was trained otherwise ({what}): overwrite it, or choose another folder")
        log.info("%s is there already", path)
        return path

    def _train(self, report: Callable[[Status], None]) -> tuple[Adaptation, Accuracies]:
        recipe, settings = self.recipe, self.settings
        for task, pool in self.batches.pools.items():
            if pool.original is not None:  # squares are for the held-out images alone
                pool.original.copy_ahead()
            decode_ahead(pool.data.train_images, slice(None) if pool.original is None else self.held_out[task])
        frozen = (*(PROJECTIONS if recipe.trained == "tower" else ()), *self.constants)
        course = Course(
            lr=recipe.lr, weight_decay=recipe.weight_decay, warmup=recipe.warmup, clip=recipe.clip, optimizer=recipe.optimizer,
            schedule=recipe.schedule, frozen=frozen,
        )
        # No experts are needed to train one: the base stands for each, so that tasks and tensors are known.
        experts = Experts(self.start, dict.fromkeys(self.data, self.start))
        procedure = Training(experts, course, Context(self.model, self.heads, self.steps, settings.chunk))
        checkpoint = self.folder.checkpoint(self.name, self.key)
        accuracies = Accuracies(self.batches, self.held_out, settings.evaluate_every, self.steps, settings.precision == "bf16")
        reports = Reports(stem(self.name), self.steps, report)
        run = engine.FitSettings(
            checkpoint, settings.checkpoint_every, accelerator=self.device.type, precision=PRECISIONS[settings.precision]
        )
        with self.batches.reading_ahead(self.steps) as batches_of:
            module = engine.fit(procedure, batches_of, self.steps, run, [accuracies, reports])
        if module.completed != self.steps:
            raise InputError(f"{stem(self.name)} was stopped at step {module.completed} of {self.steps}: start it again")
        return module, accuracies

    def _result(self, module: Adaptation) -> dict[str, Tensor]:
        trained = module.procedure.merged()
        return {name: trained[name].to(tensor.dtype) for name, tensor in self.pretrained.items()}

    def _history(self, module: Adaptation) -> list[str]:
        course, losses = module.procedure.course, module.history.task_losses  # type: ignore[attr-defined]
        rows = [",".join(("step", "lr", *(f"loss/{task}" for task in losses)))]
        for step in range(self.steps):
            values = (course.rate(step, self.steps), *(values[step] for values in losses.values()))
            rows.append(",".join((str(step + 1), *(f"{value:.9g}" for value in values))))
        return rows

    def _entry(self, module: Adaptation, accuracies: Accuracies, inputs: Mapping[str, str]) -> dict[str, Any]:
        """Return what the manifest says of the result."""
        measured = accuracies.by_step
        return {
            "seconds": round(module.history.seconds, 1), "key": self.key, "tasks": list(self.data), "recipe": self._recipe(),
            "source": self.recipe.source, "unconfirmed": self.recipe.unconfirmed, "seed": self.settings.seed,
            "settings": dataclasses.asdict(self.settings), "steps": module.completed,
            "data": {task: entry.sha256 for task, entry in self.data.items()},
            "images": {task: len(pool.rows) for task, pool in self.batches.pools.items()},
            "originals": {task: pool.original is not None for task, pool in self.batches.pools.items()},
            "held_out": {task: len(rows) for task, rows in self.held_out.items()},
            "zero_shot": measured.get(0, {}), "accuracy": measured.get(self.steps, {}),
            "accuracies": {str(step): values for step, values in measured.items()},
            "inputs": dict(inputs), "device": str(self.device), "threads": torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "lightning", "open_clip_torch", "numpy")},
        }

