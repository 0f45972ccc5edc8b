"""Fine-tuning one expert of a language model on the labelled training texts of its task.

    train_expert(Path("roberta-base"), task, recipe("roberta"), out=Path("own"), seed=0)

writes own/TASK beside own/pretrained, a folder that `checkpoints=own checkpoints.dir=own` reads. A run that was killed is
continued by the same call and ends, on a processor with the same number of threads, with the same bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusionbench_lite.checkpoints.language.api import PRETRAINED
from fusionbench_lite.data import fingerprint
from fusionbench_lite.data.text import TextTask
from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning.language import backbone
from fusionbench_lite.finetuning.language.batches import Questions, TextBatches, held_out_rows, in_chunks
from fusionbench_lite.finetuning.language.folder import LanguageFolder
from fusionbench_lite.finetuning.language.loop import Watcher, optimise
from fusionbench_lite.finetuning.language.recipes import LanguageRecipe
from fusionbench_lite.finetuning.language.validation import Validation
from fusionbench_lite.finetuning.recipes import FinetuneSettings

log = logging.getLogger(__name__)

VERSION = 1
"""Changes when the same recipe no longer gives the same weights."""
Report = Callable[[str, int, int], None]


def train_expert(
    pretrained: Path, task: TextTask, recipe: LanguageRecipe, *, out: Path, seed: int = 0, device: str | torch.device = "cpu",
    checkpoint_every: int = 200, report: Report = lambda what, done, total: None, precision: str = "fp32",
    chunk: int | None = None, evaluate_every: int | None = None, overwrite: bool = False, model: str | None = None,
    base: str = PRETRAINED, inputs: Mapping[str, str] | None = None,
) -> Path:
    """Train the expert of a task from the model in the folder `pretrained` and return its folder, out/TASK.

    `pretrained` holds config.json, safetensors and the files of the tokenizer that made the task's tokens; it is copied into
    `out`. `seed` keys a new head, adapters, the order of the texts and dropout. `precision`, `chunk` (texts in one forward
    pass), `checkpoint_every`, `evaluate_every` (steps between measurements of the held-out texts, beside those at the ends of
    epochs) and `overwrite` are as in `FinetuneSettings`; with dropout a chunk changes more than rounding. `model` (its name)
    and `inputs` (names to SHA-256) are noted in the manifest, `base` (the name of the pretrained model) in adapters.

    What is there already, trained alike and undamaged, is not trained again. Raises InputError for input that does not fit, a
    folder of another base model or an expert trained otherwise, and MergeError for a loss or a gradient that is not finite.
    """
    settings = FinetuneSettings(
        seed=seed, precision=precision, chunk=chunk, checkpoint_every=checkpoint_every, evaluate_every=evaluate_every,
        overwrite=overwrite,
    )
    folder = LanguageFolder(out, pretrained, model)
    return _Job(folder, task, recipe, settings, torch.device(device), base).run(dict(inputs or {}), report)


def data_sha256(task: TextTask) -> str:
    """Return a hash of what a training reads of a task."""
    data = (
        task.name, task.classes, fingerprint(task.train_images),
        None if task.train_targets is None else task.train_targets.fingerprint, np.asarray(task.train_labels).tolist(), task.metric,
    )
    return hashlib.sha256(repr(data).encode()).hexdigest()


class _Job:
    """One fine-tuning."""

    def __init__(
        self, folder: LanguageFolder, task: TextTask, recipe: LanguageRecipe, settings: FinetuneSettings, device: torch.device,
        base: str,
    ) -> None:
        self.folder, self.task, self.recipe, self.settings, self.device = folder, task, recipe, settings, device
        self.base = base
        backbone.check_task(task)
        self.train, self.held_out = held_out_rows(task.name, len(task.train_labels), recipe.held_out)
        if not len(self.train) or (recipe.select == "best_epoch" and not len(self.held_out)):
            raise InputError(
                f"task {task.name!r} has {len(self.train)} texts to train on and {len(self.held_out)} that are held out "
                f"(held_out={recipe.held_out}): give more training texts"
            )
        self.steps = recipe.steps_of(len(self.train))
        self.key = self._key()

    def run(self, inputs: Mapping[str, str], report: Report) -> Path:
        """Train what is missing, and return its folder."""
        name, folder = self.task.name, self.folder
        with folder.alone(name):
            folder.open()
            there = None if self.settings.overwrite else folder.expert(name)
            if there is not None:
                return self._reused(there)
            start = time.perf_counter()
            made = backbone.prepared(folder.pretrained, self.task, self.recipe, self.settings.seed)
            model = made.model.to(self.device)
            losses, validation = self._trained(model, report)
            seconds = time.perf_counter() - start
            entry = self._entry(made, validation, inputs, seconds)
            path = folder.keep(name, lambda place: backbone.save(made, place, self.base), entry, self._history(losses))
            folder.forget_checkpoints(name)
            return path

    def _key(self) -> str:
        """Return what names everything that decides the weights, apart from versions and rounding."""
        settings = self.settings
        content = {
            "version": VERSION, "base": self.folder.base, "recipe": self._recipe(), "steps": self.steps, "seed": settings.seed,
            "precision": settings.precision, "chunk": settings.chunk, "data": data_sha256(self.task),
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def _recipe(self) -> dict[str, Any]:
        """Return the recipe for this task alone, as a manifest holds it."""
        plain = dataclasses.asdict(self.recipe) | {"lr": self.recipe.lrs.get(self.task.name, self.recipe.lr)}
        kept = {name: value for name, value in plain.items() if name not in ("source", "unconfirmed", "lrs")}
        written: dict[str, Any] = json.loads(json.dumps(kept))
        return written

    def _reused(self, there: Mapping[str, Any]) -> Path:
        path = self.folder.path / self.task.name
        if there.get("key") != self.key:
            was, now = there.get("recipe", {}), self._recipe()
            other = [f"{name} {was.get(name)!r}, not {now[name]!r}" for name in now if was.get(name) != now[name]]
            what = other[0] if other else f"seed {there.get('seed')}, {there.get('steps')} steps, texts or settings that differ"
            raise InputError(f"{path} was trained otherwise ({what}): overwrite it, or choose another folder")
        log.info("%s is there already", path)
        return path

    def _trained(self, model: nn.Module, report: Report) -> tuple[list[float], Validation]:
        """Train the model in place, up to the weights that the recipe selects."""
        recipe, settings, name = self.recipe, self.settings, self.task.name
        questions = Questions(self.task, self.device, bf16=settings.precision == "bf16")
        batches = TextBatches(
            questions.texts.lengths, self.train, recipe.batch, grouped=recipe.grouped, seed=settings.seed, task=name
        )
        parameters = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        validation = Validation(
            model, questions, self.held_out, metric=self.task.metric, steps=self.steps, an_epoch=batches.an_epoch,
            every=settings.evaluate_every, keep=parameters if recipe.select == "best_epoch" else None,
        )

        def loss_of_step(step: int) -> Iterator[Tensor]:
            rows = batches.rows(step)
            for part in in_chunks(rows, settings.chunk):
                yield questions.losses(model, part).sum() / questions.count(rows)

        watchers: list[Watcher] = [validation]
        losses = optimise(
            model, loss_of_step, parameters, recipe.course(name, self.steps), steps=self.steps, key=(settings.seed, name),
            checkpoint=self.folder.checkpoint(name, self.key), checkpoint_every=settings.checkpoint_every, watchers=watchers,
            report=lambda done, _: report(f"fine-tuning {name}", done, self.steps),
        )
        validation.select()
        return losses, validation

    def _history(self, losses: list[float]) -> list[str]:
        course = self.recipe.course(self.task.name, self.steps)
        rows = (f"{step + 1},{course.rate(step, self.steps):.9g},{loss:.9g}" for step, loss in enumerate(losses))
        return [f"step,lr,loss/{self.task.name}", *rows]

    def _entry(
        self, made: backbone.Backbone, validation: Validation, inputs: Mapping[str, str], seconds: float
    ) -> dict[str, Any]:
        """Return what the manifest says of the result."""
        libraries = ["torch", "transformers", "tokenizers", "numpy", *(["peft"] if made.lora else [])]
        return {
            "seconds": round(seconds, 1), "key": self.key, "tasks": [self.task.name], "recipe": self._recipe(),
            "recipe_name": self.recipe.name, "source": self.recipe.source, "unconfirmed": self.recipe.unconfirmed,
            "seed": self.settings.seed, "settings": dataclasses.asdict(self.settings), "steps": self.steps,
            "texts": len(self.train), "held_out": validation.summary(), "inputs": dict(inputs), "device": str(self.device),
            "threads": torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in libraries},
        }



