"""From a recorded configuration back to the command line that makes the run again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning.arguments import NAMES, PATHS, quoted
from fusionbench_lite.planning.config import Config
from fusionbench_lite.planning.mistakes import for_shells

_ELSEWHERE = frozenset({"method", "model", "logger", "experiment", "scale", "plan", "overwrite", "cache_dir", "results_dir"})
"""Keys of the configuration that are named first, or that have nothing to do with a run's numbers."""
_PLAIN, _VALUES = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII), ("null", "true", "false", "nan", "inf", "on", "off", "yes", "no")
"""Texts that stand without quotes, and words that do not."""


def command(config: Mapping[str, Any], results_dir: Path) -> str | None:
    """Return the command of a recorded configuration, None where that names neither method nor model.

    What differs from the defaults is given: a preset that has changed since decides the rest.
    """
    parts = overrides(config, results_dir)
    return None if parts is None else " ".join(["python -m fusionbench_lite", *map(for_shells, parts)])


def overrides(config: Mapping[str, Any], results_dir: Path) -> list[str] | None:
    """Return the overrides of that command, as `command_line.plan_of` takes them."""
    method, model = (config.get(key) for key in ("method", "model"))
    if not isinstance(method, Mapping) or not isinstance(model, Mapping) or "id" not in method or "name" not in model:
        return None
    parts = [f"method={method['id']}", f"model={model['name']}"]
    for group, name in (("method", method["id"]), ("model", model["name"])):
        parts += _differences(config[group], _file(group, str(name)), f"{group}.")
    usual = _plain(dataclasses.asdict(Config()))
    usual["checkpoints"]["seed"] = config.get("seed")
    others = {key: value for key, value in config.items() if key not in _ELSEWHERE and key in usual}
    return [*parts, *_differences(others, usual, ""), f"results_dir={results_dir}"]


def _file(group: str, name: str) -> dict[str, Any]:
    """Return what a group's file of this name sets, its name alone where there is none."""
    path = config_dir() / group / f"{name}.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {"id" if group == "method" else "name": name, **content}


def _differences(values: Mapping[str, Any], usual: Mapping[str, Any], at: str) -> Iterator[str]:
    for name, value in values.items():
        default = usual.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            yield from _differences(value, default, f"{at}{name}.")
        elif value != default:
            key = f"{at}{name}"
            yield f"{key}={_text(value) if key not in (*NAMES, *PATHS) else _given(value)}"


def _given(value: Any) -> str:
    """Return a path or names of tasks, which are taken as they are."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _text(value: Any) -> str:
    """Return a value in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _VALUES else quoted(value)
    return repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.name if isinstance(value, Enum) else value
