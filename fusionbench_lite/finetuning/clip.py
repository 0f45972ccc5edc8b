"""Fine-tuning CLIP on the images of its tasks: what `python -m fusionbench_lite.finetune` does for a CLIP model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fusionbench_lite import checkpoints
from fusionbench_lite.data import TaskData, vision
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.evaluator import Encode, Evaluation
from fusionbench_lite.finetuning import Settings, Status, finetune
from fusionbench_lite.finetuning.recipes import Recipe
from fusionbench_lite.finetuning.recipes import recipe as recipe_of
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.models.modes import with_weights
from fusionbench_lite.suites import clip
from fusionbench_lite.suites.suite import Wanted, device_of, wanted_of
from fusionbench_lite.weights.readers import SafetensorsWeights

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.checkpoints import Found
    from fusionbench_lite.finetune import Options
    from fusionbench_lite.planning.plan import Plan

Rows = dict[str, Evaluation]


def train(plan: Plan, options: Options, progress: Progress) -> tuple[Rows, Path]:
    """Train an expert of every task, or one model of all, and return test accuracies by row and the folder of the files."""
    return _Training(plan, options, progress).run()


class _Training:
    """The encoder, heads and images that all trainings of a command share."""

    def __init__(self, plan: Plan, options: Options, progress: Progress) -> None:
        if plan.backbone.family == "own":
            raise InputError("checkpoints=own reads experts that are there: choose the recipe's family, as checkpoints=tall")
        self.plan, self.options, self.progress = plan, options, progress
        self.wanted: Wanted = wanted_of(plan)
        self.device = device_of(plan.device)
        self.recipe: Recipe = recipe_of(options.recipe or _recipe(plan), **options.changes)
        request = clip.request_of(self.wanted)
        self.found: Found = checkpoints.find_base(request, progress)
        sources = clip.sources_of(self.wanted)
        self.data: Mapping[str, TaskData] = {task: vision.load(task, sources, progress) for task in self.wanted.tasks}
        self.heads: Mapping[str, ZeroShotHead] = {
            task: clip.head(task, entry, self.found, request, plan.backbone.variant, self.device)
            for task, entry in self.data.items()
        }
        self.pretrained = dict(SafetensorsWeights(self.found.pretrained))
        self.constants = dict(clip.constants(self.found))
        if self.constants and self.recipe.trained != "tower":  # experts of the family do not have the projection
            self.recipe = recipe_of(self.recipe.name, **options.changes, trained="tower")
        self.model = clip.encoder(plan.backbone, self.pretrained, self.found).to(self.device)
        self.evaluator = clip.evaluator_of(self.wanted, self.data, self.heads, self.device)

    def run(self) -> tuple[Rows, Path]:
        """Train what the folder lacks, then evaluate."""
        plan, tasks = self.plan, list(self.data)
        rows: Rows = {"zero-shot": self.evaluator.evaluate(self._encoder(self.pretrained))}
        if self.recipe.joint:
            path = self._file(tasks)
            rows["traditional_mtl"] = self.evaluator.evaluate(self._encoder(dict(SafetensorsWeights(path))))
            return rows, path.parent
        own = {}
        for task in tasks:
            path = self._file([task])
            own[task] = self.evaluator.task(task, self._encoder(dict(SafetensorsWeights(path))))
        return rows | {"individual": own}, self._folder(plan)

    def _file(self, tasks: list[str]) -> Path:
        plan, options = self.plan, self.options
        settings = Settings(
            plan.seed, plan.precision, plan.trainer["chunk"], options.checkpoint_every, options.evaluate_every, plan.overwrite
        )

        def report(status: Status) -> None:
            self.progress(f"fine-tuning {status.name}", status.step, status.steps)

        return finetune(
            self.model, self.pretrained, {task: self.heads[task] for task in tasks}, {task: self.data[task] for task in tasks},
            self.recipe, settings, folder=self._folder(plan), model_name=plan.model, layout=plan.backbone.layout,
            inputs=self.found.files, report=report, validation=self._validation(tasks), constants=self.constants,
            family=plan.backbone.family,
        )

    def _validation(self, tasks: list[str]) -> dict[str, np.ndarray] | None:
        """Return the training rows that are held out, None for the recipe's: EuroSAT has a validation set beside them."""
        if "eurosat" not in tasks or not self.recipe.held_out:
            return None
        others = [task for task in tasks if task != "eurosat"]
        return {task: vision.validation_rows(len(self.data[task].train_labels))[1] for task in others}

    def _folder(self, plan: Plan) -> Path:
        if self.options.out:
            return Path(self.options.out).expanduser()
        return self.wanted.cache / "finetuned" / f"{plan.model}-{plan.backbone.layout}-{plan.backbone.variant}"

    def _encoder(self, weights: Mapping[str, Tensor]) -> Encode:
        return with_weights(self.model, {name: tensor.to(self.device) for name, tensor in weights.items()})


def _recipe(plan: Plan) -> str:
    family = plan.backbone.family
    return family if family in ("ta", "fusionbench") else "tall"
