"""The zoo of a small language model: pretrained on all tasks, one expert per task, in the own arrangement.

    <cache>/zoo/<model>-<key>/pretrained/, TASK/, manifest.json        as checkpoints=own reads it

The key covers everything that decides the weights. The manifest holds the SHA-256 of every file and is compared at every
load: what is damaged or missing is trained again, alone, to the same bits. A build that was interrupted keeps what was finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fusionbench_lite.data.text import TextTask
from fusionbench_lite.data.text.mini import tokenizer
from fusionbench_lite.finetuning.embedded import fixed_threads
from fusionbench_lite.finetuning.language import backbone, small
from fusionbench_lite.finetuning.language.batches import Questions, TextBatches
from fusionbench_lite.finetuning.language.folder import PRETRAINED, LanguageFolder
from fusionbench_lite.finetuning.language.loop import optimise
from fusionbench_lite.finetuning.language.pretraining import body, is_head, pretrained
from fusionbench_lite.finetuning.language.small import SmallRecipe
from fusionbench_lite.finetuning.shared_folder import MANIFEST
from fusionbench_lite.models import language
from fusionbench_lite.models.language.building import generates, own_state
from fusionbench_lite.paths import atomic_directory, file_sha256, locked

log = logging.getLogger(__name__)

VERSION = 1
"""Changes when the same recipe no longer gives the same weights."""
Report = Callable[[str, int, int], None]


def tokenizer_folder(model: str, cache: Path) -> Path:
    """Return the folder of a small model's tokenizer and configuration, written where the cache lacks it."""
    kind, config = small.KINDS[model], small.config(model)
    key = hashlib.sha256(json.dumps([kind, config, sorted(tokenizer.vocabulary(kind))]).encode()).hexdigest()[:16]
    folder = cache / "zoo" / f"{model}-words-{key}"
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with atomic_directory(folder) as temporary:
                tokenizer.write(kind, temporary)
                (temporary / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder


def load_or_build(
    model: str, data: Mapping[str, TextTask], cache: Path, seed: int, recipe: SmallRecipe, report: Report
) -> Path:
    """Return the folder of the zoo of these tasks, training what is missing or damaged.

    Two processes that need the same zoo take turns: the second waits and finds it built. Raises InputError when the cache cannot
    be written.
    """
    folder = cache / "zoo" / f"{model}-{_key(model, data, seed, recipe)}"
    # Tensors are too small for more than one thread, and the bits are the same on all processors of a kind.
    with locked(folder.with_suffix(".lock")), fixed_threads(1):
        _Builder(model, data, folder, seed, recipe, report).build(tokenizer_folder(model, cache))
    return folder


def _key(model: str, data: Mapping[str, TextTask], seed: int, recipe: SmallRecipe) -> str:
    libraries = ("torch", "transformers", "tokenizers", *(["peft"] if small.KINDS[model] == "t5" else []))
    content = {
        "version": VERSION, "model": small.config(model), "seed": seed, "recipe": dataclasses.asdict(recipe),
        "data": {task: entry.sha256 for task, entry in sorted(data.items())},
        "libraries": {name: importlib.metadata.version(name) for name in libraries},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class _Builder:
    """Trains what the manifest of one zoo does not vouch for."""

    def __init__(
        self, model: str, data: Mapping[str, TextTask], folder: Path, seed: int, recipe: SmallRecipe, report: Report
    ) -> None:
        # One order for the sums of the joint training, whatever order the tasks were named in.
        self.data = {task: data[task] for task in sorted(data)}
        self.model_name, self.path, self.seed, self.recipe, self.report = model, folder, seed, recipe, report
        self.kind = small.KINDS[model]

    def build(self, words: Path) -> None:
        """Train what is missing or damaged; `words` is the folder of the tokenizer."""
        if not self._pretrained_is_sound():
            before = self._base()
            self._pretrain(words)
            if before not in (None, LanguageFolder(self.path, self.path / PRETRAINED, self.model_name).base):
                log.warning("%s: pretraining gave other bits than before: all experts are trained again", self.path)
                (self.path / MANIFEST).unlink()
        folder = LanguageFolder(self.path, self.path / PRETRAINED, self.model_name)
        folder.open()
        for task in self.data:
            if folder.expert(task) is None:
                self._expert(folder, task)

    # ------------------------------------------------------------------ the pretrained model

    def _noted(self) -> dict[str, Any]:
        try:
            noted: dict[str, Any] = json.loads((self.path / MANIFEST).read_text())
        except (OSError, ValueError):
            (self.path / MANIFEST).unlink(missing_ok=True)
            return {}
        return noted if isinstance(noted, dict) else {}

    def _base(self) -> str | None:
        base: str | None = self._noted().get("base_sha256")
        return base

    def _pretrained_is_sound(self) -> bool:
        files = {name: entry for name, entry in self._noted().get("files", {}).items() if name.startswith(f"{PRETRAINED}/")}
        broken = [name for name, entry in files.items() if not self._is_sound(name, entry["sha256"])]
        for name in broken:
            log.warning("%s is damaged or gone: pretraining again", self.path / name)
        return bool(files) and not broken

    def _is_sound(self, name: str, sha256: str) -> bool:
        return (self.path / name).is_file() and file_sha256(self.path / name) == sha256

    def _pretrain(self, words: Path) -> None:
        model = pretrained(self.data, words, self.recipe, self.seed, self.report)
        kept = {name: tensor.contiguous() for name, tensor in own_state(model).items() if not is_head(model, name)}
        with atomic_directory(self.path / PRETRAINED) as temporary:
            save_file(kept, temporary / "model.safetensors", metadata={"format": "pt"})
            model.config.save_pretrained(temporary)
            tokenizer.write(self.kind, temporary)

    # ------------------------------------------------------------------ experts

    def _expert(self, folder: LanguageFolder, task: str) -> None:
        entry, recipe, start = self.data[task], self.recipe, time.perf_counter()
        made = self._start(folder, entry)
        questions = Questions(entry, torch.device("cpu"))
        batches = TextBatches(
            questions.texts.lengths, np.arange(len(questions.labels)), recipe.finetune_batch, grouped=True, seed=self.seed,
            task=task,
        )
        losses = optimise(
            made.model, lambda step: [questions.losses(made.model, batches.rows(step)).mean()], body(made.model),
            recipe.course(recipe.finetune_lr), steps=recipe.finetune_steps, key=(self.seed, task),
            report=lambda done, _: self.report(f"fine-tuning {task}", done, recipe.finetune_steps),
        )
        noted = {
            "key": self.path.name, "tasks": [task], "recipe": dataclasses.asdict(recipe), "seed": self.seed,
            "seconds": round(time.perf_counter() - start, 1), "versions": {"torch": torch.__version__},
        }
        history = ["step,loss", *(f"{step},{loss:.9g}" for step, loss in enumerate(losses, 1))]
        folder.keep(task, lambda place: backbone.save(made, place, PRETRAINED), noted, history)

    def _start(self, folder: LanguageFolder, entry: TextTask) -> backbone.Backbone:
        """Return what an expert is trained from: the pretrained model with the turned head of task or words, or with adapters."""
        if self.kind == "t5":
            return backbone.prepared(folder.pretrained, entry, self.recipe.adapters(), self.seed)
        if generates(self.kind):  # the words' rows are its head
            model = language.full_model(folder.pretrained)
            model.requires_grad_(True).lm_head.weight.requires_grad_(False)
            return backbone.Backbone(model=model, lora=None, classes=None)
        with torch.random.fork_rng(devices=[]):
            model = language.full_model(folder.pretrained, entry.num_classes)
        head = small.head(self.kind, entry.num_classes, self.recipe, self.seed, turned=True, task=entry.name)
        model.load_state_dict(head, strict=False)
        for name, tensor in model.named_parameters():
            tensor.requires_grad_(not is_head(model, name))
        return backbone.Backbone(model=model, lora=None, classes=entry.classes)
