"""Fine-tuning CLIP on the images of its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fusionbench_lite import checkpoints
from fusionbench_lite.base.devices import device_of
from fusionbench_lite.data import TaskData, vision
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.evaluator import Encode, Evaluation
from fusionbench_lite.finetuning.callbacks import Status
from fusionbench_lite.finetuning.job import finetune
from fusionbench_lite.finetuning.options import Options, Trained
from fusionbench_lite.finetuning.recipes import FinetuneSettings, Recipe
from fusionbench_lite.finetuning.recipes import recipe as recipe_of
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.models.modes import with_weights
from fusionbench_lite.paths import expanded, folder
from fusionbench_lite.suites import Wanted
from fusionbench_lite.suites.clip import loading
from fusionbench_lite.suites.clip.requests import layout_of, request_of, sources_of, variant_of
from fusionbench_lite.weights.readers import SafetensorsWeights

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.checkpoints import Found

Rows = dict[str, Evaluation]


CHANGES = ("steps", "batch", "lr", "images")
"""Options that replace values of the recipe."""
OPTIONS = ("recipe", "out", *CHANGES, "checkpoint_every", "evaluate_every")
CHECKPOINT_EVERY = 200


def train(wanted: Wanted, options: Options, progress: Progress) -> Trained:
    """Train an expert of every task, or one model of all."""
    rows, folder = _Training(wanted, options, progress).run()
    return Trained(f"{wanted.model} fine-tuned", rows, folder)


class _Training:
    """The encoder, heads and images that all trainings of a command share."""

    def __init__(self, wanted: Wanted, options: Options, progress: Progress) -> None:
        if wanted.family == "own":
            raise InputError("checkpoints=own reads experts that are there: choose the recipe's family, as checkpoints=tall")
        self.wanted, self.options, self.given, self.progress = wanted, options, options.given, progress
        options.check(OPTIONS, wanted.model)
        self._folder()  # refused before anything is loaded
        self.device = device_of(wanted.device)
        changes = {name: self.given[name] for name in CHANGES if name in self.given}
        self.recipe: Recipe = recipe_of(self.given.get("recipe") or _recipe(wanted), **changes)
        request, sources = request_of(wanted), sources_of(wanted)
        self.base: Found = checkpoints.find_base(request, progress)
        self.data: Mapping[str, TaskData] = {task: vision.load(task, sources, progress) for task in wanted.tasks}
        self.heads: Mapping[str, ZeroShotHead] = {
            task: loading.head(task, entry, self.base, request, variant_of(wanted), self.device)
            for task, entry in self.data.items()
        }
        self.pretrained = dict(SafetensorsWeights(self.base.pretrained))
        self.constants = dict(loading.constants(self.base))
        if self.constants and self.recipe.trained != "tower":  # experts of the family do not have the projection
            self.recipe = recipe_of(self.recipe.name, **changes, trained="tower")
        self.model = loading.encoder(wanted, self.pretrained, self.base).to(self.device)
        self.evaluator = loading.evaluator_of(wanted, self.data, self.heads, self.device)

    def run(self) -> tuple[Rows, Path]:
        """Train what the folder lacks, then evaluate."""
        tasks = list(self.data)
        rows: Rows = {"zero-shot": self.evaluator.evaluate(self._encoder(self.pretrained))}
        if self.recipe.joint:
            path = self._file(tasks)
            rows["traditional_mtl"] = self.evaluator.evaluate(self._encoder(dict(SafetensorsWeights(path))))
            return rows, path.parent
        accuracies = {}
        for task in tasks:
            path = self._file([task])
            accuracies[task] = self.evaluator.task(task, self._encoder(dict(SafetensorsWeights(path))))
        return rows | {"individual": accuracies}, self._folder()

    def _file(self, tasks: list[str]) -> Path:
        wanted = self.wanted
        settings = FinetuneSettings(
            seed=wanted.seed, precision=wanted.precision, chunk=self.options.chunk,
            checkpoint_every=self.given.get("checkpoint_every", CHECKPOINT_EVERY),
            evaluate_every=self.given.get("evaluate_every"), overwrite=self.options.overwrite,
        )

        def report(status: Status) -> None:
            self.progress(f"fine-tuning {status.name}", status.step, status.steps)

        return finetune(
            self.model, self.pretrained, {task: self.heads[task] for task in tasks}, {task: self.data[task] for task in tasks},
            self.recipe, settings, folder=self._folder(), model_name=wanted.model, layout=layout_of(wanted),
            inputs=self.base.files, report=report, validation=self._validation(tasks), constants=self.constants,
            family=wanted.family,
        )

    def _validation(self, tasks: list[str]) -> dict[str, np.ndarray] | None:
        """Return the training rows that are held out, None for the recipe's: EuroSAT has a validation set beside them."""
        if "eurosat" not in tasks or not self.recipe.held_out:
            return None
        others = [task for task in tasks if task != "eurosat"]
        return {task: vision.validation_rows(len(self.data[task].train_labels))[1] for task in others}

    def _folder(self) -> Path:
        if "out" in self.given:
            return folder("finetune.out", expanded(self.given["out"]))
        wanted = self.wanted
        return wanted.cache / "finetuned" / f"{wanted.model}-{layout_of(wanted)}-{variant_of(wanted)}"

    def _encoder(self, weights: Mapping[str, Tensor]) -> Encode:
        return with_weights(self.model, {name: tensor.to(self.device) for name, tensor in weights.items()})


def _recipe(wanted: Wanted) -> str:
    return wanted.family if wanted.family in ("ta", "fusionbench") else "tall"
