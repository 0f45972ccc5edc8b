"""Settings that depend on method, model and task count, read from a table that names their source."""

from __future__ import annotations

import functools
from typing import Any

import yaml

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.paths import config_dir
from fusionbench_lite.suites import Wanted


def lookup(method: str, wanted: Wanted, task_set: str, name: str | None = None) -> dict[str, tuple[Any, str]]:
    """Return {setting: (value, source)} of every preset that fits; a later entry of the table wins.

    Where the manifest of a folder of experts names their family, the source of what goes by it says so. Entries with a
    `name` hold only where that name is asked for, and then over all others. Raises InputError for a name that no entry of
    the method has.
    """
    if name is not None and name not in (offered := names(method)):
        hint = did_you_mean(name, offered) if offered else "it has none"
        raise InputError(f"method {method!r} has no preset {name!r}: {hint}")
    return _found("set", method, wanted, task_set, name)


def of_suite(method: str, wanted: Wanted, task_set: str, name: str | None = None) -> dict[str, tuple[Any, str]]:
    """Return {option: (value, source)} of what these presets say of the suite instead of the method."""
    return _found("suite", method, wanted, task_set, name)


def _found(part: str, method: str, wanted: Wanted, task_set: str, name: str | None) -> dict[str, tuple[Any, str]]:
    general: dict[str, tuple[Any, str]] = {}
    named: dict[str, tuple[Any, str]] = {}
    for entry in _table():
        when = entry["when"]
        fits = (
            method in _listed(when.get("method", method))
            and wanted.model in _listed(when.get("model", wanted.model))
            and wanted.release in _listed(when.get("checkpoints", wanted.release))
            and wanted.layout in _listed(when.get("layout", wanted.layout))
            and bool({task_set, len(wanted.tasks)} & set(_listed(when.get("tasks", task_set))))
        )
        if fits and entry.get("name") in (None, name):
            target = named if "name" in entry else general
            by = f"; the experts' manifest.json says family {wanted.stated}" if wanted.stated and "checkpoints" in when else ""
            target |= {setting: (value, entry["source"] + by) for setting, value in entry.get(part, {}).items()}
    return general | named


def names(method: str) -> list[str]:
    """Return the names of a method's presets that have to be asked for."""
    return sorted({
        str(entry["name"]) for entry in _table()
        if "name" in entry and method in _listed(entry["when"].get("method", method))
    })


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@functools.cache
def _table() -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = yaml.safe_load((config_dir() / "presets.yaml").read_text())
    return table
