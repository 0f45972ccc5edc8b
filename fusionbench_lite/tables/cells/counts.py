"""Statistics that need no run: parameters of methods, sizes of data sets."""

from __future__ import annotations

from collections.abc import Mapping

from fusionbench_lite import suites
from fusionbench_lite.errors import InputError
from fusionbench_lite.planning import counts, task_sets
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.planning.experiments import CellSpec
from fusionbench_lite.planning.experiments.statistics import PERCENT


def count(spec: CellSpec, unit: str) -> float:
    """Return the number of a cell whose statistic needs no run.

    Learned parameters are in percent of all where the cell is. Raises InputError where the method does not apply to the model, or
    the task has no such split.
    """
    run = spec.runs[0][0]
    if spec.statistic.name == "size":
        return _size(spec, run.values)
    what = spec.statistic.argument
    arguments = [one for one in run.arguments if not one.startswith("steps=")]  # of a trial: no count depends on it
    return counts.parameters(plan_of(arguments), "share" if what == "learned" and unit == PERCENT else what)


def _size(spec: CellSpec, values: Mapping[str, str]) -> float:
    (task,) = task_sets.resolve(_typed(values["tasks"]), None).names
    found = suites.kind_of(values["model"]).sizes(values["model"], task, values)
    if spec.statistic.argument not in found:
        raise InputError(f"task {task!r} of {values['model']} has no size {spec.statistic.argument!r}, only {', '.join(found)}")
    return found[spec.statistic.argument][0]


def _typed(tasks: str) -> object:
    return [name.strip() for name in tasks[1:-1].split(",")] if tasks.startswith("[") else tasks
