"""Statistics that need no run: parameters of methods, sizes of data sets."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from fusionbench_lite import registry, suites
from fusionbench_lite.errors import InputError
from fusionbench_lite.planning import sizes, task_sets
from fusionbench_lite.planning.experiments import CellSpec
from fusionbench_lite.planning.experiments.statistics import PERCENT


def count(spec: CellSpec, unit: str) -> float:
    """Return the number of a cell whose statistic needs no run.

    `parameters:total` are those of all experts that are merged, of the encoder alone for the pretrained model; `learned` is in
    percent of that where the cell is; `relative` are the models kept at inference, in encoders. Raises InputError where the method
    does not apply to the model, or the task has no such split.
    """
    values = spec.runs[0][0].values
    if spec.statistic.name == "size":
        return _size(spec, values)
    of = sizes.architecture_of(values["model"])
    tasks = len(task_sets.resolve(_typed(values["tasks"]), None).names)
    method, what = values["method"], spec.statistic.argument
    total = of.parameters * (1 if method == "pretrained" else tasks)
    if what == "total":
        return total
    if what == "relative" and method == "individual":
        return float(tasks)
    size = _learned(values, tasks)
    if what == "learned":
        return 100 * size[0] / total if unit == PERCENT else size[0]
    return size[1] if what == "extra" else (of.parameters + size[1]) / of.parameters


def _learned(values: Mapping[str, str], tasks: int) -> tuple[int, int]:
    """Return what a method learns, and what it keeps beyond one encoder."""
    method = values["method"]
    given = {key.removeprefix("method."): yaml.safe_load(value) for key, value in values.items() if _is_own(key)}
    entry = registry.get(method, learning=True)
    if not entry.adaptive and not entry.per_task and entry.learned is None:
        return 0, 0  # one merged model, and nothing is learned
    size = sizes.learned(sizes.architecture_of(values["model"]), tasks, method, given)
    if size.total is None:
        raise InputError(f"method {method} has no size on {values['model']}: {size.note}")
    return size.total, size.extra


def _is_own(key: str) -> bool:
    return key.startswith("method.") and not key.startswith("method.adaptation.")


def _size(spec: CellSpec, values: Mapping[str, str]) -> float:
    (task,) = task_sets.resolve(_typed(values["tasks"]), None).names
    found = suites.kind_of(values["model"]).sizes(values["model"], task, values)
    if spec.statistic.argument not in found:
        raise InputError(f"task {task!r} of {values['model']} has no size {spec.statistic.argument!r}, only {', '.join(found)}")
    return found[spec.statistic.argument][0]


def _typed(tasks: str) -> object:
    return [name.strip() for name in tasks[1:-1].split(",")] if tasks.startswith("[") else tasks
