"""The folder of a language model as transformers writes it: what is refused before it is read, and the hash of what counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from fusionbench_lite.base.file_hashes import remembered
from fusionbench_lite.errors import InputError
from fusionbench_lite.weights.stored.beside import CONFIG, TOKENIZER

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_OTHERS = (CONFIG, "generation_config.json", *TOKENIZER)


def check(folder: Path) -> None:
    """Raise InputError for what is no folder of a language model with its tokenizer."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give one with {CONFIG}, the weights and the tokenizer, as merge_files leaves it")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} has no {CONFIG}: copy it from the pretrained model")
    if not _weights(folder):
        raise InputError(f"{folder} has no weights ({' or '.join(WEIGHTS)}): merge them into it first")
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise InputError(f"{folder} has no tokenizer ({', '.join(VOCABULARIES)}): copy it from the pretrained model")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} is no index of shards ({type(error).__name__}: {error}): merge again") from None
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise InputError(f"{index} names {missing[0]}, which is not there, nor {len(missing) - 1} more: merge again")


def hashes(folder: Path, cache: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that decides what the model says, by name; large ones are remembered in the cache."""
    files = [*_weights(folder), *(folder / name for name in _OTHERS if (folder / name).is_file())]
    try:
        return {path.name: remembered(path, cache) for path in sorted(files)}
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error


def one_hash(files: Mapping[str, str]) -> str:
    """Return one SHA-256 for files by name and SHA-256."""
    return hashlib.sha256("".join(f"{name}\0{sha256}\n" for name, sha256 in sorted(files.items())).encode()).hexdigest()


def tasks_hash(folder: Path | None) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder of the user's own tasks, by its path there."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise InputError(f"task_dir={folder} is no folder: give one with NAME.yaml as lm-evaluation-harness reads it")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _weights(folder: Path) -> list[Path]:
    """Return the files of weights: safetensors where there are any, as transformers reads them."""
    return next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])
