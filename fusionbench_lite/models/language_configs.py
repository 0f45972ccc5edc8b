"""The config.json of a language model's folder. Never imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import InputError
from fusionbench_lite.weights.stored.beside import CONFIG


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a folder. Raises InputError where there is none, or none that can be read."""
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} has no {CONFIG}: give a folder that save_pretrained wrote") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no configuration: give a folder that save_pretrained wrote")
    return content
