"""The folder that fine-tuned models go to, in the form that `checkpoints=own checkpoints.dir=FOLDER` reads.

    pretrained.safetensors   the weights that all of them start from
    heads.safetensors        the frozen heads: unit rows [C, d] under each task's name
    individual-<task>.safetensors, traditional_mtl.safetensors
    history-<name>.csv       learning rate and loss of every step
    manifest.json            what was trained from what and how, with the SHA-256 of every file

Several processes may train different tasks into one folder. Files appear whole; what is shared is changed under a lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning.shared_folder import SharedFolder, bare
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.paths import atomic_file, file_sha256
from fusionbench_lite.weights.readers import checksum

PRETRAINED, HEADS = "pretrained.safetensors", "heads.safetensors"
StateDict = Mapping[str, Tensor]


def content_sha256(weights: StateDict) -> str:
    """Return a SHA-256 of names, dtypes, shapes and values, whatever file they lie in and in whatever order."""
    return checksum("", weights)


class Folder(SharedFolder):
    """One folder of models that start from one base, called `model` in `layout`, whose weights have the hash `base`.

    `family` is the family of published experts that they stand in for, by whose rules `checkpoints=own` merges them.
    """

    def __init__(self, path: Path, model: str, layout: str | None, base: str, family: str | None = None) -> None:
        super().__init__(path)
        self.model, self.layout, self.base, self.family = model, layout, base, family

    def open(self, pretrained: StateDict, heads: Mapping[str, ZeroShotHead]) -> None:
        """Put the base and the heads there, or see that they are what is there already.

        Raises InputError where the folder has another base model, or another head under a task's name.
        """
        with self.shared() as manifest:
            self._check_base(manifest)
            self._check_heads(manifest, heads)
            if not (self.path / PRETRAINED).is_file():
                self._save(PRETRAINED, pretrained, manifest)
            stored = _read(self.path / HEADS) if (self.path / HEADS).is_file() else {}
            new = {task: head.weight for task, head in heads.items() if task not in stored}
            if new:
                self._save(HEADS, {**stored, **new}, manifest)
            scale = next(iter(heads.values())).scale
            facts = {"format": 1, "model": self.model, "base_sha256": self.base, "head_scale": scale}
            manifest |= {**facts, **({"layout": self.layout} if self.layout else {})}
            if self.family is not None:
                manifest.setdefault("family", self.family)  # ta and tall share base and rules: the first one stays

    def keep(self, name: str, weights: StateDict, entry: Mapping[str, Any], history: Sequence[str]) -> Path:
        """Store a trained model with what the manifest is to say of it, and the lines of its history."""
        self.keep_history(stem(name), history)
        with self.shared() as manifest:
            self._save(name, weights, manifest, entry)
        return self.path / name

    def _check_base(self, manifest: Mapping[str, Any]) -> None:
        fix = "choose another folder"
        for what, wanted in (("model", self.model), ("layout", self.layout)):
            there = manifest.get(what)
            if wanted is not None and there is not None and there != wanted:
                raise InputError(f"{self.path} holds models of {what} {there!r}, not {wanted!r}: {fix}")
        path = self.path / PRETRAINED
        if not path.is_file():
            return
        there = manifest.get("base_sha256") or content_sha256(_read(path))
        if there != self.base:
            raise InputError(
                f"{path} is another base model (content {there[:12]}) than the pretrained {self.model} given "
                f"({self.base[:12]}): {fix}"
            )

    def _check_heads(self, manifest: Mapping[str, Any], heads: Mapping[str, ZeroShotHead]) -> None:
        stored = _read(self.path / HEADS) if (self.path / HEADS).is_file() else {}
        there = manifest.get("head_scale", next(iter(heads.values())).scale)
        for task, head in heads.items():
            if there != head.scale:
                raise InputError(
                    f"{self.path} is for heads of scale {there}, that of task {task!r} has {head.scale}: choose another folder"
                )
            if task in stored and not torch.equal(stored[task], head.weight.cpu()):
                raise InputError(
                    f"{self.path / HEADS} has another head of task {task!r}, {tuple(stored[task].shape)} to "
                    f"{tuple(head.weight.shape)}, with other rows: choose another folder"
                )

    def _save(
        self, name: str, weights: StateDict, manifest: dict[str, Any], entry: Mapping[str, Any] | None = None
    ) -> None:
        with atomic_file(self.path / name) as temporary:
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}, temporary)
            sha256 = file_sha256(temporary)
        manifest["files"][name] = {"sha256": sha256, **(entry or {})}


def stem(name: str) -> str:
    """Return a model file's name without suffix and, for an expert, without "individual-"."""
    return bare(name).removeprefix("individual-")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is no readable safetensors file ({reason}): copy it again, or choose another folder") from error
