"""Where the weights are that a path was to lead to: below a folder, in the cache of the hub, beside a misspelt name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fusionbench_lite.errors import nearest
from fusionbench_lite.paths import expanded
from fusionbench_lite.weights.stored.contents import first_line
from fusionbench_lite.weights.stored.indexes import SUFFIX, is_index

ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model"
_DEEP, _MANY, _SHOWN = 4, 300, 3
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ADDRESS = re.compile(r"(https?|hf|s3|gs|file|git\+ssh)://.*", re.IGNORECASE)
_STATE = re.compile(r"(optim(izer)?|scheduler|scaler|rng_states?|random_states|training_args)([_.-].*)?", re.IGNORECASE)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_UNFINISHED = (".crdownload", ".part", ".partial", ".incomplete", ".download", ".aria2", ".tmp")
_OTHERS = (*_PICKLED, ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".npz", ".distcp", ".tflite", ".mlmodel", ".nemo")


def is_weights(name: str) -> bool:
    """Say whether a file is called like weights of a model: no hidden file (._model.safetensors of a Mac), no optimizer."""
    return name.lower().endswith(SUFFIX) and not name.startswith(".") and not _STATE.fullmatch(name[: -len(SUFFIX)])


def missing(given: str, path: Path, error: Exception) -> str:
    """Return why a path cannot be used, and what the user may have meant."""
    if not isinstance(error, FileNotFoundError):
        return f"{str(path)!r} cannot be read ({first_line(error)}): give a .safetensors file, a directory of them, or a state dict"
    if _ADDRESS.fullmatch(given):
        return f"{given!r} is an address: download what is there and give the path of its folder"
    parent = path.parent
    if parent.is_dir():
        near = nearest(path.name, _names(parent))
        if near is not None:
            wanted = "a .safetensors file or a directory of them"
            return f"{str(path)!r} does not exist: did you mean {str(parent / near)!r}? It must be {wanted}"
    elif _REPO.fullmatch(given):
        there = next(_cached(given), None)
        if there is not None:
            return f"{given!r} is no path but a name of the Hugging Face hub; it was downloaded before: give {str(there)!r}"
        return f"{given!r} is no path but a name of the Hugging Face hub: hf download {given} prints the folder to give"
    return f"{str(path)!r} does not exist: give a .safetensors file, a directory of them, or a state dict"


def nothing_in(folder: Path, names: list[str]) -> str:
    """Return the error for a folder without weights: what it holds instead, and which folder below it has them."""
    others = sorted(name for name in names if name.lower().endswith(_OTHERS) and not _STATE.fullmatch(name.rsplit(".", 1)[0]))
    below = list(_below(folder))
    if below:
        return f"{folder} holds no {SUFFIX} file itself: give {_choice(below)}"
    unfinished = next((name for name in names if name.lower().endswith(_UNFINISHED)), None)
    if unfinished is not None and not others:
        return f"{folder} holds no {SUFFIX} file, only {unfinished}, a download that has not ended: fetch it again"
    if not others:
        where = "" if names else " (it is empty)"
        return f"{folder} holds no {SUFFIX} file{where}: give the folder of the weights, or convert other formats first"
    shown = ", ".join(others[:2]) + (", ..." if len(others) > 2 else "")
    fix = "load the model with its library and save it as safetensors: save_pretrained(FOLDER, safe_serialization=True)"
    if all(name.lower().endswith(_PICKLED) for name in others):
        fix += (
            "; or give the state dict itself, torch.load(FILE, weights_only=True); "
            "of a CLIP image tower or head, python -m fusionbench_lite.convert makes one"
        )
    return f"{folder} holds no {SUFFIX} file, only {shown}: {fix}"


def hint_below(folder: Path) -> str:
    """Return the end of a message that names the folders below which have weights, "" where there are none."""
    below = list(_below(folder))
    return f", or give {_choice(below)}" if below else ""


def base_of(folder: Path) -> str:
    """Return the end of a message that says which model an adapter changes, as its configuration names it."""
    try:
        name = json.loads((folder / ADAPTER_CONFIG).read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return f" ({name!r} says its configuration)" if isinstance(name, str) and name else ""


def _choice(folders: list[Path]) -> str:
    if len(folders) == 1:
        return str(folders[0])
    shown = [str(folder) for folder in folders[:_SHOWN]]
    more = f" (and {len(folders) - _SHOWN} more)" if len(folders) > _SHOWN else ""
    return f"one of {', '.join(shown[:-1])} or {shown[-1]}{more}" if not more else f"one of {', '.join(shown)}{more}"


def _below(folder: Path) -> Iterator[Path]:
    """Yield the folders below with weights, the nearest first, checkpoints in the order of their numbers, the snapshot that
    the hub's cache calls main alone."""
    level, seen = [folder], 0
    for _ in range(_DEEP):
        following: list[Path] = []
        for parent in level:
            snapshot = _main(parent.parent if parent.name == "snapshots" else parent)
            children = [snapshot] if snapshot else [parent / name for name in sorted(_names(parent), key=_natural)]
            for child in children:
                if (seen := seen + 1) > _MANY or child.name.startswith(".") or not child.is_dir():
                    continue
                names = _names(child)
                if any(map(is_weights, names)) or any(map(is_index, names)) or ADAPTER_CONFIG in names:
                    yield child
                else:
                    following.append(child)
        level = following


def _main(folder: Path) -> Path | None:
    """Return the snapshot of the hub's cache that a repository's main branch is at."""
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return snapshot if snapshot.is_dir() else None


def _cached(repo: str) -> Iterator[Path]:
    """Yield the snapshots of a repository in the cache of the Hugging Face hub."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = expanded(os.environ.get("HF_HUB_CACHE") or f"{home}/hub")
    yield from _below(cache / f"models--{repo.replace('/', '--')}")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(digits), text) for digits, text in ((d or "0", t) for d, t in re.findall(r"(\d*)(\D*)", name)) if digits or text]


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except (OSError, ValueError):
        return []
