"""A record's run once more, without a step: its plan, its inputs, and the model that it evaluated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.procedure import Procedure
from fusionbench_lite.base.version import __version__
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.methods.api import Merged, merge, prepare, stored_parts, unfolding
from fusionbench_lite.planning import plan as planning
from fusionbench_lite.planning import recorded
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.planning.settings import Sourced
from fusionbench_lite.running import adapting, course, method_inputs, recording, run
from fusionbench_lite.running.loading import load
from fusionbench_lite.running.tracking import Place
from fusionbench_lite.tables import records

if TYPE_CHECKING:
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.evaluation.suite import Suite
    from fusionbench_lite.planning.plan import Plan
    from fusionbench_lite.tables.records import Record
    from fusionbench_lite.weights.compact import PerTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remade:
    """The model of a record under one selection rule: weights that were merged again, or a procedure that has what was learned.

    `stored`: of a method that keeps one model per task, the stored form of every tensor.
    """

    record: Record
    rule: str
    plan: Plan
    suite: Suite
    model: Merged | Procedure
    stored: Mapping[str, PerTask] | None = None


def remade(record: Record, rule: str | None, cache: str | None, progress: Progress) -> Remade:
    """Return the model of a record. Raises InputError in one line where it cannot be made again exactly."""
    used = chosen_rule(record, rule)
    plan = plan_again(record, cache)
    suite = run.with_chosen_experts(load(plan, progress), plan.experts)
    _check_inputs(record, suite)
    base = _base(plan, suite, progress)
    key = records.key(recording.identity(plan, suite, base.key))
    if key != record.key:
        raise InputError(f"{record.path.name} cannot be made again here: {_difference(record, suite)}")
    if not registry.get(plan.method).adaptive:
        inputs = {**plan.values, **method_inputs.inputs(plan, suite)}
        if not registry.get(plan.method).per_task:
            merged = merge(plan.method, suite.pretrained, suite.experts, **inputs)
            return Remade(record=record, rule=used, plan=plan, suite=suite, model=merged)
        view, _, produced = prepare(plan.method, suite.pretrained, suite.experts, inputs)
        stored = stored_parts(view, produced())
        view.check_unread()
        merged = unfolding(plan.method, view, stored, produced.hyperparameters, produced.limits)
        return Remade(record=record, rule=used, plan=plan, suite=suite, model=merged, stored=stored)
    procedure = adapting.procedure_of(plan, suite, base.weights())
    adapting.take_back(procedure, record.path, used, record.data["selections"][used]["step"])
    return Remade(record=record, rule=used, plan=plan, suite=suite, model=procedure)


def chosen_rule(record: Record, rule: str | None) -> str:
    """Return the selection rule whose model is exported, the record's own by default. Raises InputError for one that it has not,
    and where what was learned at its step was not kept."""
    selections = record.data["selections"]
    used = record.selection(record.data["select"])[0] if rule is None else rule
    if used not in selections:
        raise InputError(f"{record.path.name} has no select={used}: {did_you_mean(used, selections)}")
    if not registry.get(record.method).adaptive:
        return used
    file = course.learned_file(record.path, used)
    if not file.is_file() or (file.name == course.LEARNED and selections[used]["step"] != selections["last"]["step"]):
        raise InputError(
            f"{record.path.name} has kept nothing that was learned for select={used} (step {selections[used]['step']}): "
            "run it again with overwrite=true"
        )
    return used


def plan_again(record: Record, cache: str | None) -> Plan:
    """Return the plan of a record's own configuration, with the hyperparameters and the device that it names."""
    overrides = recorded.overrides(record.data["config"], results_of(record))
    if overrides is None:
        raise InputError(f"{record.path.name} names no method or no model in its config: run it again")
    folder = record.data["config"].get("cache_dir") if cache is None else cache
    plan = plan_of([*overrides, *([f"cache_dir={folder}"] if folder is not None else [])])
    noted: Mapping[str, Any] = record.data["hyperparameters"]
    known = {**plan.hyperparameters, **plan.settings}
    for name in noted:
        if name not in known:
            raise InputError(
                f"{record.path.name} has {name}={noted[name]['value']}, which {plan.method} of version {__version__} does not "
                "know: use the version that made it"
            )
    alone = {name: setting for name, setting in noted.items() if name not in plan.settings}  # of two with a name settings are noted
    return dataclasses.replace(
        plan, hyperparameters=_noted(plan.hyperparameters, alone), settings=_noted(plan.settings, noted),
        wanted=dataclasses.replace(plan.wanted, device=str(record.data["device"]).partition(":")[0]), overwrite=False,
    )


def results_of(record: Record) -> Path:
    """Return the results folder that a record lies in."""
    return record.path.absolute().parent.parent


def _noted(settings: Mapping[str, Sourced], noted: Mapping[str, Any]) -> dict[str, Sourced]:
    """Return settings with what a record notes of them; one that is newer than the record keeps its default."""
    return {
        name: Sourced(noted[name]["value"], noted[name]["source"]) if name in noted else setting
        for name, setting in settings.items()
    }


def _base(plan: Plan, suite: Suite, progress: Progress) -> run.Base:
    """Return the merged model below a method's adapters. Raises InputError where it adapts and its record is gone."""
    below = planning.base_of(plan)
    if below is not None and registry.get(below.method).adaptive:
        key = records.key(recording.identity(below, suite))
        if records.find(plan.results_dir, key) is None:
            raise InputError(
                f"the adapters of {plan.method} sit on {below.method}, whose record {key} is not in {plan.results_dir}: "
                "run the record's own line again"
            )
    return run.Base(plan, suite, progress, Place())


def _check_inputs(record: Record, suite: Suite) -> None:
    """Refuse inputs that are not the record's. Raises InputError with the name and both hashes of the first one."""
    data = record.data
    pairs = (
        ("the checkpoint", data["checkpoints"]["files"], suite.files), ("the data of task", data["data"], suite.data_hashes),
    )
    for what, then, now in pairs:
        for name, sha256 in then.items():
            if name in now and now[name] != sha256:  # files of one's own may have other names where they lie elsewhere now
                raise InputError(
                    f"{record.path.name} cannot be made again here: {what} {name!r} had SHA-256 {sha256} and has {now[name]}: "
                    "give the cache_dir, data_dir and checkpoints of its run"
                )


def _difference(record: Record, suite: Suite) -> str:
    """Return why a run with the inputs of a record has another key."""
    return (
        "its checkpoints, settings, version or device decide other numbers here (then fusionbench_lite "
        f"{record.data['versions'].get('fusionbench_lite')} on {record.data['device']}, now {__version__} on {suite.device}): "
        "use the version and settings that made it"
    )
