"""What an exported folder holds: names of files, its description, and the folder of each task."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import InputError

DESCRIPTION, MODEL, HEADS, LEARNED, EXPERTS, CARD = (
    "fusionbench_lite.json", "model.safetensors", "heads.safetensors", "learned.safetensors", "experts.safetensors", "README.md",
)
FORMAT = 1
ONE, EACH, ADAPTERS, PERCEPTRONS, COMPONENTS = "model", "per_task", "adapters", "routed_perceptrons", "routed_components"
KINDS = {
    ONE: f"one model for all tasks, in {MODEL}",
    EACH: f"one model per task, each in the folder of its task as {MODEL}",
    ADAPTERS: f"one model for all tasks, in {MODEL}, and adapters of every task on it, in {LEARNED}",
    PERCEPTRONS: (
        f"one model in {MODEL} whose perceptrons are mixed with those of the experts ({EXPERTS}) by routers ({LEARNED}), for every "
        "example or batch anew"
    ),
    COMPONENTS: (
        f"one model in {MODEL} to which a router ({LEARNED}) adds low-rank differences of the experts ({EXPERTS}), for every example "
        "anew"
    ),
}
"""The forms of a model, in words."""
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """The content of fusionbench_lite.json.

    `tasks` are those that have a head, in order, `merged` those whose experts were merged; `folders` are where the models of tasks
    lie, empty for one model. `values` are hyperparameters by name.
    """

    kind: str
    model: str
    method: str
    tasks: Sequence[str]
    merged: Sequence[str]
    folders: Mapping[str, str]
    values: Mapping[str, Any]
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / DESCRIPTION).write_text(f"{text}\n", encoding="utf-8")


def described(folder: Path) -> Description:
    """Return the description of an exported folder. Raises InputError where that is none."""
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Description(**content)
        sound = (
            found.format == FORMAT and found.kind in KINDS and set(found.folders) <= set(found.tasks)
            and all(_PLAIN.fullmatch(name) for name in found.folders.values())
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        said = "is not there" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise InputError(f"{folder} is no exported model: {DESCRIPTION}: {said}: give the out= of an export") from None
    if not sound:
        raise InputError(
            f"{folder} is no exported model of this version: {DESCRIPTION} has format {found.format!r} and kind {found.kind!r}, this "
            f"version reads format {FORMAT} and {', '.join(KINDS)}"
        )
    return found


def folders_of(tasks: Sequence[str]) -> dict[str, str]:
    """Return a folder name per task: its own where that is plain and no other's in whichever case, else one with its number."""
    names: dict[str, str] = {}
    for number, task in enumerate(tasks):
        taken = {name.casefold() for name in names.values()}
        plain = _PLAIN.fullmatch(task) and len(task) <= 100 and task.casefold() not in taken
        names[task] = task if plain else f"task_{number}"
    return names
