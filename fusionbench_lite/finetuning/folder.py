"""The folder that fine-tuned models go to, in the form that `checkpoints=own checkpoints.dir=FOLDER` reads.

    pretrained.safetensors   the weights that all of them start from
    heads.safetensors        the frozen heads: unit rows [C, d] under each task's name
    individual-<task>.safetensors, traditional_mtl.safetensors
    history-<name>.csv       learning rate and loss of every step
    manifest.json            what was trained from what and how, with the SHA-256 of every file

Several processes may train different tasks into one folder. Files appear whole; what is shared is changed under a lock.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusionbench_lite.errors import InputError
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.paths import atomic_file, file_sha256, locked
from fusionbench_lite.weights.readers import checksum

log = logging.getLogger(__name__)

MANIFEST, PRETRAINED, HEADS = "manifest.json", "pretrained.safetensors", "heads.safetensors"
KEY = "[0-9a-f]" * 16
StateDict = Mapping[str, Tensor]


def content_sha256(weights: StateDict) -> str:
    """Return a SHA-256 of names, dtypes, shapes and values, whatever file they lie in and in whatever order."""
    return checksum("", weights)


class Folder:
    """One folder of models that start from one base, called `model` in `layout`, whose weights have the hash `base`.

    `family` is the family of published experts that they stand in for, by whose rules `checkpoints=own` merges them.
    """

    def __init__(self, path: Path, model: str, layout: str | None, base: str, family: str | None = None) -> None:
        self.path, self.model, self.layout, self.base, self.family = path, model, layout, base, family

    def open(self, pretrained: StateDict, heads: Mapping[str, ZeroShotHead]) -> None:
        """Put the base and the heads there, or see that they are what is there already.

        Raises InputError where the folder has another base model, or another head under a task's name.
        """
        with self._shared() as manifest:
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

    def entry(self, name: str) -> dict[str, Any] | None:
        """Return what the manifest says of a file that is there and undamaged."""
        noted = _manifest(self.path)["files"].get(name)
        if noted is None or not (self.path / name).is_file():
            return None
        if file_sha256(self.path / name) != noted["sha256"]:
            log.warning("%s is damaged: training it again", self.path / name)
            return None
        return dict(noted)

    def keep(self, name: str, weights: StateDict, entry: Mapping[str, Any], history: Sequence[str]) -> Path:
        """Store a trained model with what the manifest is to say of it, and the lines of its history."""
        with atomic_file(self.path / f"history-{stem(name)}.csv") as temporary:
            temporary.write_text("\n".join(history) + "\n")
        with self._shared() as manifest:
            self._save(name, weights, manifest, entry)
        return self.path / name

    def checkpoint(self, name: str, key: str) -> Path:
        """Return where a training with this key keeps what it needs to go on; a file that cannot be read is removed."""
        path = self.path / f".{_bare(name)}-{key}.ckpt"
        self._remove(f"..{_bare(name)}-{KEY}.ckpt.*.tmp")  # of processes that were killed while they wrote
        if path.exists():
            try:
                torch.load(path, weights_only=True, mmap=True, map_location="cpu")  # without the tensors' values
            except Exception as error:  # torch raises many kinds
                log.warning("%s is damaged (%s): training starts anew", path, str(error).splitlines()[0])
                path.unlink()
        return path

    def forget_checkpoints(self, name: str) -> None:
        """Remove the checkpoints of a model, those of other settings too."""
        self._remove(f".{_bare(name)}-{KEY}.ckpt")

    def _remove(self, pattern: str) -> None:
        for path in self.path.glob(pattern):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Hold the right to train a model here; a second process waits."""
        with locked(self.path / f".{_bare(name)}.lock"):
            yield

    @contextlib.contextmanager
    def _shared(self) -> Iterator[dict[str, Any]]:
        """Yield the manifest to be changed, and store it."""
        with locked(self.path / ".folder.lock"):
            manifest = _manifest(self.path)
            before = json.dumps(manifest)
            yield manifest
            if json.dumps(manifest) != before:
                with atomic_file(self.path / MANIFEST) as temporary:
                    temporary.write_text(json.dumps(manifest, indent=1) + "\n")

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
    return _bare(name).removeprefix("individual-")


def _bare(name: str) -> str:
    return name.removesuffix(".safetensors")


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        return {"files": {}}
    try:
        manifest = json.loads(path.read_text())
        if not isinstance(manifest, dict) or not isinstance(manifest.setdefault("files", {}), dict):
            raise ValueError("it is no manifest")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): mend it, or choose another folder") from error
    return manifest


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is no readable safetensors file ({reason}): copy it again, or choose another folder") from error
