"""Which published experts those of a folder of one's own stand in for. Never imports torch."""

from __future__ import annotations

import json
from pathlib import Path

from fusionbench_lite.checkpoints.families import FAMILIES
from fusionbench_lite.errors import InputError, did_you_mean

MANIFEST = "manifest.json"
"""What fine-tuning writes beside its experts; `family` in it is what is looked for."""


def stated_family(folder: Path) -> str | None:
    """Return the family that the experts of a folder of one's own stand in for, by its manifest; None where none says it.

    Raises InputError for a manifest that cannot be read and for a family that there is not.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read ({reason}): mend it, or remove it") from error
    said = content.get("family") if isinstance(content, dict) else None
    released = [name for name in FAMILIES if name != "own"]
    if said is not None and said not in released:
        raise InputError(f"{path}: family is {said!r}, which no experts are published under: {did_you_mean(str(said), released)}")
    return said
