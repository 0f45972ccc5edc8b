"""The folder that fine-tuned language models go to, in the form that `checkpoints=own checkpoints.dir=FOLDER` reads.

    pretrained/      config.json, model.safetensors and the tokenizer's files: what all of them start from
    TASK/            config.json and model.safetensors of an expert, or adapter_config.json and adapter_model.safetensors
    history-TASK.csv, manifest.json

Several processes may train different tasks into one folder.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench_lite.checkpoints.language.api import PRETRAINED as PRETRAINED
from fusionbench_lite.checkpoints.language.folders import BESIDE
from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning.shared_folder import SharedFolder
from fusionbench_lite.paths import atomic_directory, atomic_file, file_sha256
from fusionbench_lite.weights.stored.beside import CONFIG, TOKENIZER

log = logging.getLogger(__name__)

WEIGHTS = (".safetensors", ".safetensors.index.json")


class LanguageFolder(SharedFolder):
    """One folder of experts that start from the model in the folder `pretrained`, called `model` where it has a name."""

    def __init__(self, path: Path, pretrained: Path, model: str | None) -> None:
        super().__init__(path)
        self._source, self.model = pretrained, model
        self._hashes = {file.name: file_sha256(file) for file in _files(pretrained)}
        self.base = _of_weights(self._hashes)

    @property
    def pretrained(self) -> Path:
        """The base model, as this folder holds it."""
        return self.path / PRETRAINED

    def open(self) -> None:
        """Put the base there, or see that it is what is there already. Raises InputError where the folder has another one."""
        fix = "choose another folder"
        with self.shared() as manifest:
            there = manifest.get("model", self.model)
            if self.model is not None and there != self.model:
                raise InputError(f"{self.path} holds models of model {there!r}, not {self.model!r}: {fix}")
            there = manifest.get("base_sha256", self.base)
            if there != self.base:
                raise InputError(
                    f"{self.pretrained} is another base model (content {there[:12]}) than the one in {self._source} "
                    f"({self.base[:12]}): {fix}"
                )
            known = "base_sha256" in manifest
            for name, sha256 in self._hashes.items():
                self._put(name, sha256, known)
                manifest["files"][f"{PRETRAINED}/{name}"] = {"sha256": sha256}
            manifest |= {"format": 1, **({"model": self.model} if self.model else {}), "base_sha256": self.base}

    def expert(self, task: str) -> dict[str, Any] | None:
        """Return what the manifest says of an expert all of whose files are there and undamaged."""
        noted = list(self._noted(task))
        entries = [self.entry(name) for name in noted]
        return next((entry for entry in entries if entry and "key" in entry), None) if noted and all(entries) else None

    def keep(self, task: str, write: Callable[[Path], Path], entry: Mapping[str, Any], history: Sequence[str]) -> Path:
        """Store an expert with what the manifest is to say of it. `write` fills a folder and returns the file of the weights."""
        folder = self.path / task
        self.keep_history(task, history)
        with atomic_directory(folder) as temporary:
            weights = write(temporary).name
        with self.shared() as manifest:
            for name in [name for name in manifest["files"] if name.startswith(f"{task}/")]:
                del manifest["files"][name]
            for file in sorted(folder.iterdir()):
                manifest["files"][f"{task}/{file.name}"] = {"sha256": file_sha256(file), **(entry if file.name == weights else {})}
        return folder

    def _noted(self, task: str) -> Iterator[str]:
        return (name for name in self.manifest()["files"] if name.startswith(f"{task}/"))

    def _put(self, name: str, sha256: str, known: bool) -> None:
        """Copy a file that is not there, or damaged; where nothing is `known` of the folder it may be another model's."""
        path = self.pretrained / name
        if path.is_file():
            if file_sha256(path) == sha256:
                return
            if not known and (name == CONFIG or name.endswith(WEIGHTS)):
                raise InputError(f"{path} is another model's than {self._source / name}: choose another folder")
            log.warning("%s differs from %s: it is replaced", path, self._source / name)
        with atomic_file(path) as temporary:
            shutil.copyfile(self._source / name, temporary)


def base_sha256(pretrained: Path) -> str:
    """Return a hash of the weights and the configuration in a folder; raises InputError where it lacks one of them."""
    return _of_weights({file.name: file_sha256(file) for file in _files(pretrained)})


def _of_weights(hashes: Mapping[str, str]) -> str:
    decisive = {name: sha256 for name, sha256 in hashes.items() if name == CONFIG or name.endswith(WEIGHTS)}
    return hashlib.sha256(repr(sorted(decisive.items())).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    """Return the files of a model's folder that belong to it. Raises InputError where it lacks its weights or configuration."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} has no {CONFIG}: give the folder of a pretrained model, as save_pretrained writes it")
    files = [file for file in sorted(folder.iterdir()) if file.name in (CONFIG, *BESIDE, *TOKENIZER) or file.name.endswith(WEIGHTS)]
    if not any(file.name.endswith(WEIGHTS) for file in files):
        raise InputError(f"{folder} has no safetensors file: store the model with save_pretrained")
    return files
