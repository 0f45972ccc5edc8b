"""What an adaptive run left in its record besides results: coefficients, masks, their spectra, the course of the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError
from fusionbench_lite.tables.families import label
from fusionbench_lite.tables.records import Record

LEARNED, HISTORY, TRAJECTORY = "learned.safetensors", "history.csv", "trajectory.npz"
COMMON = "/common"
"""Ends the name of what belongs to no task: the common block of AdaRank on Iso-CTS, with one row."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Learned:
    """`coefficients` {tensor: [T]}, `masks` {matrix: bool [T, r]} and `spectrum` {matrix: [T, r], descending}."""

    tasks: tuple[str, ...]
    coefficients: Mapping[str, Floats]
    masks: Mapping[str, NDArray[np.bool_]]
    spectrum: Mapping[str, Floats]


@dataclass(frozen=True)
class Trajectory:
    """Coefficients [k, L, T] of the tensors `names` after `steps` [k]."""

    steps: NDArray[np.int64]
    coefficients: Floats
    names: tuple[str, ...]


def read_learned(record: Record) -> Learned | None:
    """Return what a run learned, None where it left nothing. Raises InputError for a file that is no such thing."""
    from safetensors import SafetensorError, safe_open

    path = record.path / LEARNED
    if not path.is_file():
        return None
    parts: dict[str, dict[str, NDArray[np.generic]]] = {"coefficients": {}, "masks": {}, "spectrum": {}}
    try:
        with safe_open(path, "numpy") as file:
            tasks = (file.metadata() or {}).get("tasks", "")
            for key in sorted(file.keys()):
                part, _, name = key.partition("/")
                if part in parts:
                    parts[part][name] = file.get_tensor(key)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run the command again with overwrite=true") from None
    own = not tasks or tasks == ",".join(record.tasks)  # a name may have a comma
    names = tuple(record.tasks) if own else tuple(tasks.split(","))
    return Learned(
        names,
        {name: values.astype(np.float64).reshape(-1) for name, values in parts["coefficients"].items()},
        {name: values.astype(np.bool_) for name, values in parts["masks"].items()},
        {name: values.astype(np.float64) for name, values in parts["spectrum"].items()},
    )


def read_history(record: Record) -> pd.DataFrame | None:
    """Return history.csv indexed by step, None where there is none. Columns may be missing; empty cells are nan."""
    path = record.path / HISTORY
    if not path.is_file():
        return None
    try:
        return pd.read_csv(path).set_index("step").apply(pd.to_numeric)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a history of steps ({error}); run the command again with overwrite=true") from None


def read_trajectory(record: Record) -> Trajectory | None:
    """Return the coefficients at every evaluation, None where the record holds none."""
    path = record.path / TRAJECTORY
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            steps, values, names = (file[part] for part in ("steps", "coefficients", "names"))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path}: not a trajectory ({error}); run the command again with overwrite=true") from None
    if values.ndim != 3 or values.shape[:2] != (len(steps), len(names)):
        raise InputError(f"{path}: coefficients have shape {values.shape}, expected ({len(steps)}, {len(names)}, tasks)")
    return Trajectory(steps.astype(np.int64), values.astype(np.float64), tuple(map(str, names)))


def value_of(record: Record, name: str) -> float | None:
    """Return the value of a numeric hyperparameter or setting of the run, None where it has none of that name."""
    entry = record.data["hyperparameters"].get(name) or {}
    value = entry.get("value") if isinstance(entry, Mapping) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def start_of(record: Record) -> float | None:
    """Return the coefficient that every task and tensor started from, None where it is not one number."""
    raw = value_of(record, "raw")
    return value_of(record, "scaling") if raw is None else math.log1p(math.exp(raw))


def describe(record: Record) -> str:
    """The run in words: model, tasks, seed, steps, and whether it was a trial."""
    steps = value_of(record, "steps")
    parts = [record.model, record.data["task_set"], f"seed {record.seeds.get('seed', 0)}"]
    if steps is not None:
        parts.append(f"{int(steps):,} steps")
    if record.limit is not None:
        parts.append(f"TRIAL on {record.limit} examples per task")
    return ", ".join(parts)


def name_of(record: Record) -> str:
    """The method's name for people."""
    return label(record.method)


def folder_of(record: Record, results_dir: str | Path) -> Path:
    """Where a record's pictures go unless told otherwise."""
    return Path(results_dir) / "pictures" / record.path.name
