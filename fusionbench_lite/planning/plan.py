"""From a configuration to what will be run: every name resolved, every value checked, torch not yet imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fusionbench_lite import registry
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.fields import one, some_tasks, verify
from fusionbench_lite.planning import given, presets, task_sets
from fusionbench_lite.planning import settings as method_settings
from fusionbench_lite.planning.config import Checkpoints, Config, Precision, Trainer
from fusionbench_lite.planning.given import Section
from fusionbench_lite.planning.settings import Sourced
from fusionbench_lite.planning.task_sets import TaskSet
from fusionbench_lite.suites import backbones
from fusionbench_lite.suites.backbones import Backbone

_KEYS = tuple(field.name for field in dataclasses.fields(Config))


@dataclasses.dataclass(frozen=True)
class Plan:
    """One run, resolved. `settings` are those of the adaptation or of the statistics (empty where there is neither)."""

    method: str
    hyperparameters: Mapping[str, Sourced]
    settings: Mapping[str, Sourced]
    backbone: Backbone
    tasks: TaskSet
    data_dir: Path | None
    seed: int
    checkpoints_seed: int
    limit: int | None
    select: str
    device: str
    precision: str
    overwrite: bool
    results_dir: Path
    cache_dir: str | None
    trainer: Mapping[str, Any]
    logger: Mapping[str, Any]
    checkpoints: Mapping[str, Any]
    data: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.backbone.model

    @property
    def config_precision(self) -> str:
        """Lightning's name of the precision."""
        return str(Precision[self.precision].value)

    @property
    def values(self) -> dict[str, Any]:
        """Hyperparameter values by name, as the method takes them."""
        return {name: setting.value for name, setting in self.hyperparameters.items()}

    def setting(self, name: str) -> Any:
        """Return the value of a setting of the adaptation or of the statistics."""
        return self.settings[name].value


def resolve(config: DictConfig, overrides: Sequence[str] | None = None) -> Plan:
    """Return the plan of a composed configuration; raises InputError naming the key, the value and the fix.

    `overrides` are those that it was composed of: what they set is given, whatever its value, and wins over presets, which win
    over defaults. Without them, given is what is neither null nor the method's default.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for key in plain:
        if key not in _KEYS:
            raise InputError(f"unknown key {key!r}: {did_you_mean(key, _KEYS)}")
    data_dir = Path(plain["data_dir"]).expanduser() if plain["data_dir"] else None
    backbone = backbones.choose(plain["model"], plain["checkpoints"])
    plain["tasks"] = backbones.DEFAULT_TASKS[backbone.model] if plain["tasks"] is None else plain["tasks"]
    tasks = task_sets.resolve(plain["tasks"], data_dir)
    backbones.check_tasks(backbone, tasks, plain["tasks"], data_dir)
    backbones.check_data(plain["data"], backbone, data_dir)
    if not isinstance(plain["method"], Mapping) or "id" not in plain["method"]:
        raise InputError(f"no method is named by method={plain['method']}: write method=NAME")
    section = dict(plain["method"])
    method = registry.get(_method_id(section))
    preset = presets.lookup(method.id, backbone.model, tasks, plain["preset"], backbone.release, backbone.layout, backbone.stated)
    hyperparameters, settings = method_settings.chosen(method, section, given.read(overrides), plain["steps"], preset)
    if config.select.name == "best_unsupervised" and "held_out" in settings and settings["held_out"].value == 0:
        raise InputError("select=best_unsupervised compares losses on held-out images: add method.adaptation.held_out=64")
    _check(plain)
    checkpoints = plain["checkpoints"] | {"experts": _experts(plain["checkpoints"]["experts"], tasks, method)}
    plan = Plan(
        method.id, hyperparameters, settings, backbone, tasks, data_dir, plain["seed"], plain["checkpoints"]["seed"],
        plain["limit"], config.select.name, plain["device"], config.precision.name, plain["overwrite"],
        Path(plain["results_dir"]).expanduser(), plain["cache_dir"], plain["trainer"], plain["logger"] or {},
        checkpoints, plain["data"], _jsonable(plain | {"select": config.select.name, "precision": config.precision.name}),
    )
    base_of(plan)  # a base that cannot be is refused before anything is loaded
    return plan


def base_of(plan: Plan) -> Plan | None:
    """Return the run whose merged model a method's adapters sit on, None for methods without.

    The base runs with its own presets, on the same data, seed and device.
    """
    if "merged" not in registry.get(plan.method).inputs or plan.values.get("base") is None:
        return None
    method = registry.get(plan.values["base"])
    if method.per_task or method.routed or "merged" in method.inputs:
        raise InputError(f"method {plan.method!r} needs one merged model as its base, which {method.id!r} is not")
    own = plan.backbone
    preset = presets.lookup(method.id, plan.model, plan.tasks, family=own.release, layout=own.layout, stated=own.stated)
    steps = plan.setting("base_steps")
    asked = Section({"steps": steps}, frozenset({"steps"})) if steps is not None else Section()
    return dataclasses.replace(
        plan, method=method.id, hyperparameters=method_settings.hyperparameters(method, Section(), preset),
        settings=method_settings.settings(method, asked, Section(), preset),
        config={**plan.config, "method": {"id": method.id}}, overwrite=False,
    )


def reads_training(plan: Plan) -> bool:
    """Say whether a run reads images of the training split: for statistics, held-out images, or what it learns from."""
    held_out = "held_out" in plan.settings and plan.setting("held_out") > 0
    method = registry.get(plan.method)
    return method_settings.reads_statistics(method) or held_out or method.reads_training(plan.values)


def _method_id(section: dict[str, Any]) -> str:
    """Take `id` and `base` out of the method's section: adarank with base tsvm is adarank_tsvm."""
    id = str(section.pop("id"))
    if id in registry.names() and "base" in registry.get(id).defaults:
        return id  # a hyperparameter of that name
    base = section.pop("base", None)
    if base is None:
        return id
    bases = [name.removeprefix(f"{id}_") for name in registry.names() if name.startswith(f"{id}_")]
    if base not in bases:
        raise InputError(f"unknown method.base {base!r}: {did_you_mean(str(base), bases)}")
    return f"{id}_{base}"


def _experts(chosen: Any, tasks: TaskSet, method: registry.Method) -> list[str] | None:
    """Return the tasks whose experts are merged, None for all.

    Raises InputError for what is neither a number of tasks nor a list of them, or where the method needs the others.
    """
    experts: list[str] | None = one("checkpoints.experts", chosen, some_tasks(None, tasks.names, optional=True))
    if experts is None:
        return None
    if len(experts) < len(tasks.names) and (method.adaptive or method.per_task):
        reason = "adapts on the data of every task" if method.adaptive else "has no model for a task without an expert"
        raise InputError(f"method {method.id!r} {reason}: leave checkpoints.experts out, or choose tasks={experts}")
    return experts


def _check(plain: Mapping[str, Any]) -> None:
    verify(Config, plain)
    verify(Trainer, plain["trainer"], "trainer.")
    verify(Checkpoints, plain["checkpoints"], "checkpoints.")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    return [_jsonable(entry) for entry in value] if isinstance(value, list) else value
