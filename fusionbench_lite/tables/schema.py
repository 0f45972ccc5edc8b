"""What a result.json must hold (version 1 of the schema), and how it must agree with samples.npz."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation import measures
from fusionbench_lite.evaluation.metrics import METRICS

VERSION = 1
"""Of what result.json holds. `migrations` reads earlier ones."""
KEYED_AS = 1
"""The part of a record's key that stood for the version at first. It stays when VERSION rises: keys name content."""

_TOP: dict[str, type | tuple[type, ...]] = {
    "key": str,
    "config": dict,
    "method": str,
    "hyperparameters": dict,
    "model": str,
    "tasks": list,
    "task_set": str,
    "checkpoints": dict,
    "data": dict,
    "select": str,
    "seeds": dict,
    "limit": (int, type(None)),
    "versions": dict,
    "git_revision": (str, type(None)),
    "device": str,
    "selections": dict,
    "seconds": dict,
    "peak_bytes": (int, type(None)),
}
_OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "storage": dict, "warnings": list, "evaluations": list, "caveats": list, "images": dict, "peaks": dict, "experts": list,
    "scale": str,
}
_SELECTION: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "uses_test_labels": bool,
    "per_task": dict,
    "average": (int, float, type(None)),
}
_CELL: dict[str, type | tuple[type, ...]] = {
    "metric": str,
    "value": (int, float),
    "examples": int,
    "interval": list,
}
_MEASURE: dict[str, type | tuple[type, ...]] = {"label": str, "unit": str, "direction": str}
"""What a cell says of its metric, unless that is accuracy."""


def check(data: Any) -> None:
    """Raise InputError, in one line that names the entry, unless `data` is a result.json of this schema."""
    if not isinstance(data, dict):
        raise InputError(f"result.json holds a {type(data).__name__}, not an object")
    if type(data.get("schema_version")) is not int or data["schema_version"] != VERSION:
        raise InputError(f"schema_version is {data.get('schema_version')!r}, this version reads {VERSION}")
    _fields(data, _TOP, "")
    _fields(data, {name: kind for name, kind in _OPTIONAL.items() if name in data}, "")
    if not re.fullmatch(r"[0-9a-f]{16}", data["key"]):
        raise InputError(f"key is {data['key']!r}, not 16 hex digits")
    tasks = data["tasks"]
    if not tasks or not all(isinstance(task, str) for task in tasks) or len(set(tasks)) < len(tasks):
        raise InputError(f"tasks must be different names, at least one, got {tasks}")
    for name, seconds in data["seconds"].items():
        _number(seconds, f"seconds.{name}")
    if "last" not in data["selections"]:
        raise InputError("selections.last is missing")
    for name, selection in data["selections"].items():
        _check_selection(selection, tasks, f"selections.{name}")


def _check_selection(selection: Any, tasks: list[str], where: str) -> None:
    _fields(selection, _SELECTION, f"{where}.")
    if set(selection["per_task"]) != set(tasks):
        raise InputError(f"{where}.per_task holds {sorted(selection['per_task'])}, the tasks are {sorted(tasks)}")
    for task, cell in selection["per_task"].items():
        _check_cell(cell, f"{where}.per_task.{task}")
    measure = measures.shared(measures.measure_of(cell) for cell in selection["per_task"].values())
    if measure is None or selection["average"] is None:
        if measure is not None or selection["average"] is not None:
            wanted = "null where units or directions of the tasks' metrics differ, a number elsewhere"
            raise InputError(f"{where}.average is {selection['average']}, expected {wanted}")
        return
    mean = math.fsum(cell["value"] for cell in selection["per_task"].values()) / len(tasks)
    if not math.isclose(selection["average"], mean, abs_tol=1e-6):
        raise InputError(f"{where}.average is {selection['average']}, its tasks average {mean}")


def _check_cell(cell: Any, where: str) -> None:
    _fields(cell, _CELL, f"{where}.")
    interval = cell["interval"]
    if len(interval) != 2:
        raise InputError(f"{where}.interval must be [low, high], got {interval}")
    for end in interval:
        _number(end, f"{where}.interval")
    if not interval[0] - 1e-9 <= cell["value"] <= interval[1] + 1e-9:
        raise InputError(f"{where}.value {cell['value']} lies outside its interval {interval}")
    if cell["metric"] != measures.ACCURACY.name:
        _fields(cell, _MEASURE, f"{where}.")
        if cell["direction"] not in (measures.HIGHER, measures.LOWER):
            raise InputError(f"{where}.direction is {cell['direction']!r}, expected {measures.HIGHER} or {measures.LOWER}")
    if per_example(cell):
        correct, examples = cell.get("correct"), cell["examples"]
        if type(correct) is not int or not 0 <= correct <= examples or examples < 1:
            raise InputError(f"{where}: {correct} correct of {examples} examples is no {cell['metric']}")
        if not math.isclose(cell["value"], correct / examples, abs_tol=1e-6):
            raise InputError(f"{where}.value is {cell['value']}, {correct} of {examples} is {correct / examples}")


def per_example(cell: Mapping[str, Any]) -> bool:
    """Whether the entry of a task counts right examples; else its metric is one of the whole set."""
    metric = METRICS.get(cell["metric"])
    return "correct" in cell if metric is None else metric.per_example


def check_samples(data: Mapping[str, Any], samples: Mapping[str, Any]) -> None:
    """Raise InputError unless the per-example arrays are there and agree with the numbers of result.json."""
    for name, selection in data["selections"].items():
        for task, cell in selection["per_task"].items():
            where = f"{name}/{task}"
            for part in ("predictions", "correct" if per_example(cell) else "labels"):
                if f"{where}/{part}" not in samples:
                    raise InputError(f"samples.npz lacks {where}/{part}")
                size = np.shape(samples[f"{where}/{part}"])
                if len(size) < 1 or size[0] != cell["examples"]:
                    raise InputError(f"samples.npz: {where}/{part} has shape {size} for {cell['examples']} examples")
            if per_example(cell):
                correct = np.asarray(samples[f"{where}/correct"])
                if correct.dtype != np.bool_ or int(correct.sum()) != cell["correct"]:
                    raise InputError(
                        f"samples.npz: {where}/correct ({correct.dtype}) sums to {int(correct.sum())}, "
                        f"result.json counts {cell['correct']}"
                    )
            elif cell["metric"] in METRICS:  # a metric that this version does not know is believed
                predictions, labels = (np.asarray(samples[f"{where}/{part}"]) for part in ("predictions", "labels"))
                computed = METRICS[cell["metric"]].check(predictions, labels)
                if not math.isclose(computed, cell["value"], abs_tol=1e-6):
                    raise InputError(f"samples.npz: {where} has {cell['metric']} {computed}, result.json says {cell['value']}")


def _fields(data: Any, fields: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    if not isinstance(data, dict):
        raise InputError(f"{where.rstrip('.') or 'result.json'} is a {type(data).__name__}, not an object")
    for name, kind in fields.items():
        if name not in data:
            raise InputError(f"{where}{name} is missing")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(data[name], kinds) or (isinstance(data[name], bool) and bool not in kinds):
            wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            raise InputError(f"{where}{name} is {data[name]!r}, expected {wanted}")
        if isinstance(data[name], float):
            _number(data[name], f"{where}{name}")


def _number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{where} is {value!r}, not a finite number")
