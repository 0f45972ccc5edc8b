"""`scale=mini`: the twin of a published table on the embedded suites, same rows, columns and statistics.

conf/twins.yaml says which model and which task stand for which. Settings of the published runs that mean nothing there (families
of checkpoints, presets of a paper by name, numbers of steps and images) are left out, so that the embedded suites' own hold.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning.config import SCALES
from fusionbench_lite.planning.experiments.files import Experiment, Line, Special

SEEDS = (0, 1, 2)
"""Of a twin: its runs are short, and its claims are tested over all of them."""


def scaled(experiment: Experiment, scale: str) -> Experiment:
    """Return an experiment at a scale; raises InputError for an unknown one."""
    if scale not in SCALES:
        raise InputError(f"scale is {scale!r}: {did_you_mean(scale, SCALES)}")
    return experiment if scale == "published" else _twin(experiment)


def _twin(experiment: Experiment) -> Experiment:
    columns = tuple(_line(line) for line in experiment.columns if _has_twin(line, experiment))
    kept = {line.name for line in columns}
    special = {
        at: Special(line=_line(own.line), omitted=own.omitted) for at, own in experiment.special.items() if at[1] in kept
    }
    without = [line.name for line in columns if line.statistic == "size:validation"]
    absent = Special(line=Line(name=""), omitted="drawn tasks have no validation set")
    special |= {(row.name, column): absent for row in experiment.rows for column in without}
    claims = tuple(claim for claim in experiment.claims if claim.column in kept)
    return dataclasses.replace(
        experiment, scale="mini", published=None, seeds=SEEDS, defaults=_overrides(experiment.defaults),
        rows=tuple(_line(line) for line in experiment.rows), columns=columns, special=special,
        unanswered=(), claims=claims, notes=_notes(experiment, len(columns)),
    )


def _notes(experiment: Experiment, columns: int) -> tuple[str, ...]:
    """Say what stands for what, where columns go by names of the published table."""
    twins = _table()
    models = {value for line in (*experiment.rows, *experiment.columns) for value in _values(line, "model")}
    models |= {one.partition("=")[2] for one in experiment.defaults if one.startswith("model=")}
    tasks = {line.statistic.partition(":")[2] for line in experiment.columns if line.statistic and ":" in line.statistic}
    said = [f"{model} is {twins['models'][model]}" for model in sorted(models) if model in twins["models"]]
    said += [f"{task} is {twins['tasks'][task]}" for task in sorted(tasks) if task in twins["tasks"]]
    notes = [f"Here {', '.join(said)}."] if said else []
    if columns < len(experiment.columns):
        notes.append(f"{len(experiment.columns) - columns} columns of tasks have no twin in the smaller set of tasks.")
    return tuple(notes)


def _values(line: Line, key: str) -> list[str]:
    return [one.partition("=")[2] for one in line.overrides if one.startswith(f"{key}=")]


def _has_twin(line: Line, experiment: Experiment) -> bool:
    """Whether a column is kept: one of a task where that task's twin is among the tasks of the twin's runs."""
    name, _, task = (line.statistic or "").partition(":")
    if name not in ("task", "normalized") or task in ("", "average"):
        return True
    twins = _table()
    twin = twins["tasks"].get(task)
    asked = [one.partition("=")[2] for one in (*experiment.defaults, *line.overrides) if one.startswith("tasks=")]
    if not asked:
        asked = [value for row in experiment.rows for value in _values(row, "tasks")][:1]
    if not asked or twin is None:
        return twin is not None
    return twin in _names(_tasks(asked[-1]))


def _names(text: str) -> list[str]:
    """Return the tasks of a list as the command line has it."""
    return [name.strip() for name in text.strip("[]'\"").split(",")] if "[" in text else _set(text)


def _set(name: str) -> list[str]:
    from fusionbench_lite.base.task_sets import task_sets

    tasks: list[str] = task_sets()[name]["tasks"]
    return tasks


def _line(line: Line) -> Line:
    overrides = _overrides(line.overrides) if line.mini is None else line.mini
    statistic = line.statistic
    if statistic is not None and ":" in statistic:
        name, _, argument = statistic.partition(":")
        statistic = f"{name}:{_table()['tasks'].get(argument, argument)}"
    return dataclasses.replace(
        line, overrides=overrides, mini=None, statistic=statistic, over=tuple(_overrides(one) for one in line.over), published=None,
    )


def _overrides(overrides: Sequence[str]) -> tuple[str, ...]:
    return tuple(twin for override in overrides if (twin := _override(override)) is not None)


def _override(override: str) -> str | None:
    """Return what an override is for the twin, None where it is left out."""
    key, _, value = override.partition("=")
    if key == "model":
        models = _table()["models"]
        if value not in models:
            raise InputError(f"model {value!r} has no embedded twin: {did_you_mean(value, models)}")
        return f"model={models[value]}"
    if key in ("tasks", "checkpoints.experts"):
        return f"{key}={_tasks(value)}"
    return None if key in _table()["left_out"] else override


def _tasks(value: str) -> str:
    twins = _table()
    if value in twins["sets"]:
        return str(twins["sets"][value])
    if not value.startswith("["):
        return value
    names = [name.strip() for name in value.strip("[]").split(",")]
    for name in names:
        if name not in twins["tasks"]:
            raise InputError(f"task {name!r} has no embedded twin: {did_you_mean(name, twins['tasks'])}")
    found = [twins["tasks"][name] for name in names]
    return "mini8" if set(found) == set(_set("mini8")) else f"[{','.join(found)}]"  # one order, so that the experts are shared


@functools.cache
def _table() -> Mapping[str, Any]:
    table: dict[str, Any] = yaml.safe_load((config_dir() / "twins.yaml").read_text(encoding="utf-8"))
    return table | {"sets": {str(name): value for name, value in table["sets"].items()}}
