"""The named sets of tasks of conf/task_sets.yaml."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from fusionbench_lite.paths import config_dir


def task_sets() -> dict[str, dict[str, Any]]:
    """Return {label: entry}; an entry holds `tasks` in order, and `needs_data_dir` where they come from files."""
    path = config_dir() / "task_sets.yaml"
    return _read(str(path), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read(path: str, changed: int) -> dict[str, dict[str, Any]]:
    return {str(label): entry for label, entry in yaml.safe_load(Path(path).read_text()).items()}


def tasks_of(label: str) -> tuple[str, ...]:
    """Return the tasks of a set."""
    return tuple(task_sets()[label]["tasks"])
