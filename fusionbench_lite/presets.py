"""Settings that depend on method, model and task count, read from a table that names their source."""

from __future__ import annotations

import functools
from typing import Any

import yaml

from fusionbench_lite.paths import config_dir
from fusionbench_lite.tasksets import TaskSet


def lookup(method: str, model: str, tasks: TaskSet) -> dict[str, tuple[Any, str]]:
    """Return {setting: (value, source)} of every preset that fits; a later entry of the table wins."""
    found: dict[str, tuple[Any, str]] = {}
    for entry in _table():
        when = entry["when"]
        fits = (
            method in _listed(when.get("method", method))
            and model in _listed(when.get("model", model))
            and bool({tasks.label, len(tasks.names)} & set(_listed(when.get("tasks", tasks.label))))
        )
        if fits:
            found |= {name: (value, entry["source"]) for name, value in entry["set"].items()}
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@functools.cache
def _table() -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = yaml.safe_load((config_dir() / "presets.yaml").read_text())
    return table
