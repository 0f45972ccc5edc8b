"""A folder that trainings write into, several at a time: its manifest, locks and checkpoints.

    manifest.json            what was trained from what and how, with the SHA-256 of every file
    history-NAME.csv         learning rate and loss of every step
    .NAME-KEY.ckpt           what the training of NAME needs to go on, while it lasts

Files appear whole; what is shared is changed under a lock.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file, file_sha256, locked

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
KEY = "[0-9a-f]" * 16


class SharedFolder:
    """One folder of models."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def manifest(self) -> dict[str, Any]:
        """Return the manifest. Raises InputError where it cannot be read."""
        path = self.path / MANIFEST
        if not path.exists():
            return {"files": {}}
        try:
            manifest = json.loads(path.read_text())
            if not isinstance(manifest, dict) or not isinstance(manifest.setdefault("files", {}), dict):
                raise ValueError("it is no manifest")
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): mend it, or choose another folder") from error
        return manifest

    def entry(self, name: str) -> dict[str, Any] | None:
        """Return what the manifest says of a file that is there and undamaged."""
        noted = self.manifest()["files"].get(name)
        if noted is None or not (self.path / name).is_file():
            return None
        if file_sha256(self.path / name) != noted["sha256"]:
            log.warning("%s is damaged: training it again", self.path / name)
            return None
        return dict(noted)

    def keep_history(self, name: str, lines: Sequence[str]) -> None:
        """Store the lines of a training's history."""
        with atomic_file(self.path / f"history-{name}.csv") as temporary:
            temporary.write_text("\n".join(lines) + "\n")

    def checkpoint(self, name: str, key: str) -> Path:
        """Return where a training with this key keeps what it needs to go on; a file that cannot be read is removed."""
        path = self.path / f".{bare(name)}-{key}.ckpt"
        self._remove(f"..{bare(name)}-{KEY}.ckpt.*.tmp")  # of processes that were killed while they wrote
        if path.exists():
            try:
                torch.load(path, weights_only=True, mmap=True, map_location="cpu")  # without the tensors' values
            except Exception as error:  # torch raises many kinds
                log.warning("%s is damaged (%s): training starts anew", path, str(error).splitlines()[0])
                path.unlink()
        return path

    def forget_checkpoints(self, name: str) -> None:
        """Remove the checkpoints of a model, those of other settings too."""
        self._remove(f".{bare(name)}-{KEY}.ckpt")

    def _remove(self, pattern: str) -> None:
        for path in self.path.glob(pattern):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Hold the right to train a model here; a second process waits."""
        with locked(self.path / f".{bare(name)}.lock"):
            yield

    @contextlib.contextmanager
    def shared(self) -> Iterator[dict[str, Any]]:
        """Yield the manifest to be changed, and store it."""
        with locked(self.path / ".folder.lock"):
            manifest = self.manifest()
            before = json.dumps(manifest)
            yield manifest
            if json.dumps(manifest) != before:
                with atomic_file(self.path / MANIFEST) as temporary:
                    temporary.write_text(json.dumps(manifest, indent=1) + "\n")


def bare(name: str) -> str:
    """Return a model file's name without suffix."""
    return name.removesuffix(".safetensors")
