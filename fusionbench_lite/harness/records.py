"""The record of an evaluation: one JSON file, known by a key of all that decides its numbers, written whole or not at all."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from fusionbench_lite.base.version import __version__
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file

SCHEMA = 1
KIND = "language_model_evaluation"
_LIBRARIES = ("lm_eval", "transformers", "torch", "datasets", "numpy")
_NEEDED = ("kind", "schema_version", "key", "model", "sets")


def place(results_dir: Path, key: str) -> Path:
    """Return where the record of a key lies."""
    return results_dir / "llm" / f"{key}.json"


def versions() -> dict[str, str]:
    """Return the versions of what an evaluation runs on."""
    return {"fusionbench_lite": __version__, "python": platform.python_version()} | {
        library: importlib.metadata.version(library) for library in _LIBRARIES
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a record."""
    with atomic_file(path) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Return a record. Raises InputError for what is none."""
    if not path.is_file():
        raise InputError(f"{path} is no file: give the record that python -m fusionbench_lite.evaluate_llm left")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no record of evaluate_llm ({error}): evaluate again") from None
    if not isinstance(content, dict) or content.get("kind") != KIND or any(name not in content for name in _NEEDED):
        raise InputError(f"{path} is no record of evaluate_llm: give the file that it left")
    if content["schema_version"] != SCHEMA:
        raise InputError(f"{path} has schema version {content['schema_version']}, this version reads {SCHEMA}: evaluate again")
    return content
