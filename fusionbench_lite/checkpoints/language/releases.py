"""Published experts of language models as data. Never imports torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fusionbench_lite.errors import InputError, did_you_mean

_FILE = Path(__file__).with_name("releases.yaml")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Release:
    """The experts of one model in one family; releases.yaml says what the fields mean. `about` and `base_about` are bytes."""

    family: str
    model: str
    kind: str
    base: str
    base_about: int
    repo: str
    form: str
    about: int
    tasks: tuple[str, ...]
    folder: str = ""
    folders: Mapping[str, str] = dataclasses.field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    def place(self, task: str) -> tuple[str, str]:
        """Return repository and folder therein of a task's expert."""
        return self.repo.format(task=task), self.folders.get(task, self.folder).format(task=task)


def families() -> tuple[str, ...]:
    """Return the names of all families."""
    return tuple(_table())


def families_of(model: str) -> tuple[str, ...]:
    """Return the families that have experts of a model, that of the papers' tables first."""
    return tuple(family for family, entry in _table().items() if model in entry["models"])


def release(family: str, model: str) -> Release:
    """Return the release of a family for a model; raises InputError where it has none."""
    if family not in _table():
        raise InputError(f"unknown family of checkpoints {family!r}: {did_you_mean(family, families())}")
    models = _table()[family]["models"]
    if model not in models:
        raise InputError(f"checkpoints={family} has no experts of model {model!r}: {did_you_mean(model, models)}")
    entry: dict[str, Any] = dict(models[model])
    base = entry.pop("base")
    sentences = tuple(" ".join(text.split()) for text in entry.pop("caveats", ()))
    return Release(
        family=family, model=model, base=base["repo"], base_about=base["about"], tasks=tuple(entry.pop("tasks")),
        caveats=sentences, **entry,
    )


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return table
