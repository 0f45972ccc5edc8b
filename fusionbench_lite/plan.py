"""From a configuration to what will be run: every name resolved, every value checked, torch not yet imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fusionbench_lite import backbones, collect, presets, registry, tasksets
from fusionbench_lite.adaptation.streams import KINDS
from fusionbench_lite.backbones import Backbone
from fusionbench_lite.config import Config, Precision
from fusionbench_lite.errors import InputError, MergeError, did_you_mean
from fusionbench_lite.selection import RULES
from fusionbench_lite.tasksets import TaskSet

_KEYS = tuple(field.name for field in dataclasses.fields(Config))
_DEVICES = ("auto", "cpu", "cuda")
_PLACES = ("auto", "device", "cpu", "disk")
_ADAPTATION = ("steps", "batch_size", "batches", "stream", "eval_every")
_BASE_DEFAULTS = {"base_select": "last", "base_steps": None}
"""Of a base that adapts: the selection rule, and the steps, its preset's where None."""
_ADAPTATION_DEFAULTS = {"fraction": 1.0, "held_out": 64}
"""Of the examples of each task: the part that is adapted on, and the number that is held out for best_unsupervised."""


@dataclasses.dataclass(frozen=True)
class Sourced:
    """A setting and where it comes from: "given", "default" or "preset: ..."."""

    value: Any
    source: str


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


def resolve(config: DictConfig) -> Plan:
    """Return the plan of a composed configuration; raises InputError naming the key, the value and the fix."""
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for key in plain:
        if key not in _KEYS:
            raise InputError(f"unknown key {key!r}: {did_you_mean(key, _KEYS)}")
    data_dir = Path(plain["data_dir"]).expanduser() if plain["data_dir"] else None
    backbone = backbones.choose(plain["model"], plain["checkpoints"])
    plain["tasks"] = backbones.DEFAULT_TASKS[backbone.model] if plain["tasks"] is None else plain["tasks"]
    tasks = tasksets.resolve(plain["tasks"], data_dir)
    backbones.check_tasks(backbone, tasks, plain["tasks"], data_dir)
    backbones.check_data(plain["data"], backbone)
    given = dict(plain["method"])
    method = registry.get(_method_id(given))
    adaptation = given.pop("adaptation", None) or {}
    statistics = (given.pop("statistics", None) or {}) if collect.is_needed(method) else {}
    preset = presets.lookup(method.id, backbone.model, tasks, plain["preset"], backbone.family, backbone.layout)
    hyperparameters = _hyperparameters(method, given, preset, named=plain["preset"] is not None)
    settings = _settings(method, adaptation, plain["steps"], preset)
    hyperparameters |= {name: Sourced(None, "default") for name in _too_long(hyperparameters, settings)}
    if collect.is_needed(method):
        settings = _sourced(method, "statistics", collect.SETTINGS, statistics, preset)
        for name, setting in settings.items():
            collect.check(name, setting.value)
    if config.select.name == "best_unsupervised" and "held_out" in settings and settings["held_out"].value == 0:
        raise InputError("select=best_unsupervised compares losses on held-out images: add method.adaptation.held_out=64")
    _check_integers(plain)
    checkpoints = plain["checkpoints"] | {"experts": _experts(plain["checkpoints"]["experts"], tasks, method)}
    plan = Plan(
        method.id, hyperparameters, settings, backbone, tasks, data_dir, plain["seed"], plain["checkpoints"]["seed"],
        plain["limit"], config.select.name, plain["device"], config.precision.name, plain["overwrite"],
        Path(plain["results_dir"]).expanduser(), plain["cache_dir"], plain["trainer"], plain["logger"] or {},
        checkpoints, plain["data"], _jsonable(plain | {"select": config.select.name, "precision": config.precision.name}),
    )
    base_of(plan)  # a base that cannot be is refused before anything is loaded
    return plan


def _too_long(hyperparameters: Mapping[str, Sourced], settings: Mapping[str, Sourced]) -> list[str]:
    """Return the hyperparameters whose preset is a number of steps beyond all that were asked for."""
    return [
        name for name, chosen in hyperparameters.items()
        if name.endswith("_steps") and chosen.source.startswith("preset") and chosen.value is not None
        and "steps" in settings and chosen.value > settings["steps"].value
    ]


def base_of(plan: Plan) -> Plan | None:
    """Return the run whose merged model a method's adapters sit on, None for methods without.

    The base runs with its own presets, on the same data, seed and device.
    """
    if "merged" not in registry.get(plan.method).inputs or plan.values.get("base") is None:
        return None
    method = registry.get(plan.values["base"])
    if method.per_task or method.routed or "merged" in method.inputs:
        raise InputError(f"method {plan.method!r} needs one merged model as its base, which {method.id!r} is not")
    preset = presets.lookup(method.id, plan.model, plan.tasks, family=plan.backbone.family, layout=plan.backbone.layout)
    settings = _settings(method, {}, plan.setting("base_steps") if method.adaptive else None, preset)
    if collect.is_needed(method):
        settings = _sourced(method, "statistics", collect.SETTINGS, {}, preset)
    return dataclasses.replace(
        plan, method=method.id, hyperparameters=_hyperparameters(method, {}, preset), settings=settings,
        config={**plan.config, "method": {"id": method.id}}, overwrite=False,
    )


def _method_id(given: dict[str, Any]) -> str:
    """Take `id` and `base` out of the method's section: adarank with base tsvm is adarank_tsvm."""
    id = str(given.pop("id"))
    if id in registry.names() and "base" in registry.get(id).defaults:
        return id  # a hyperparameter of that name
    base = given.pop("base", None)
    if base is None:
        return id
    bases = [name.removeprefix(f"{id}_") for name in registry.names() if name.startswith(f"{id}_")]
    if base not in bases:
        raise InputError(f"unknown method.base {base!r}: {did_you_mean(str(base), bases)}")
    return f"{id}_{base}"


def _hyperparameters(
    method: registry.Method, given: Mapping[str, Any], preset: Mapping[str, tuple[Any, str]], *, named: bool = False
) -> dict[str, Sourced]:
    """Return the checked hyperparameters. A preset that was asked for by name also replaces defaults written out in the
    method's configuration."""
    chosen: dict[str, Sourced] = {}
    for name, default in method.defaults.items():
        value = given.get(name)
        if value is not None and value != default:
            chosen[name] = Sourced(value, "given")
        elif (value is None or named) and name in preset:
            chosen[name] = Sourced(preset[name][0], f"preset: {preset[name][1]}")
        else:
            chosen[name] = Sourced(default, "default")
    unknown = {name: value for name, value in given.items() if name not in method.defaults}
    checked = method.configure(**unknown, **{name: s.value for name, s in chosen.items() if s.source != "default"})
    values = registry.describe(checked)
    return {name: dataclasses.replace(setting, value=values[name]) for name, setting in chosen.items()}


def _settings(
    method: registry.Method, given: Mapping[str, Any], steps: Any, preset: Mapping[str, tuple[Any, str]]
) -> dict[str, Sourced]:
    if not method.adaptive:
        if steps is not None:
            raise InputError(f"steps={steps} has no meaning for method {method.id!r}, which adapts nothing: remove it")
        return {}
    given = {**given, **({"steps": steps} if steps is not None else {})}
    defaults = _ADAPTATION_DEFAULTS | (_BASE_DEFAULTS if "merged" in method.inputs else {})
    result = _sourced(method, "adaptation", (*_ADAPTATION, *defaults), given, preset, defaults)
    for name, setting in result.items():
        low = 0 if name in ("steps", "held_out", "base_steps") else 1
        if name in ("stream", "base_select"):
            words = KINDS if name == "stream" else RULES
            if setting.value not in words:
                raise MergeError(f"unknown {name} {setting.value!r}: {did_you_mean(str(setting.value), words)}")
        elif name == "base_steps" and setting.value is None:
            continue
        elif name == "fraction":
            number = setting.value
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number <= 1:
                raise InputError(f"fraction must be a number above 0 and at most 1, got {number!r}")
        elif isinstance(setting.value, bool) or not isinstance(setting.value, int) or setting.value < low:
            raise InputError(f"{name} must be an integer of at least {low}, got {setting.value!r}")
    return result


def _sourced(
    method: registry.Method, section: str, names: tuple[str, ...], given: Mapping[str, Any],
    preset: Mapping[str, tuple[Any, str]], defaults: Mapping[str, Any] | None = None,
) -> dict[str, Sourced]:
    """Return the settings of a section of the method's configuration: what is given wins over a preset."""
    if not isinstance(given, Mapping):
        raise InputError(f"method.{section} must map {', '.join(names[:-1])} and {names[-1]}, got {given!r}")
    for name in given:
        if name not in names:
            raise InputError(f"unknown key 'method.{section}.{name}': {did_you_mean(name, names)}")
    result: dict[str, Sourced] = {}
    for name in names:
        if given.get(name) is not None:
            result[name] = Sourced(given[name], "given")
        elif name in preset:
            result[name] = Sourced(preset[name][0], f"preset: {preset[name][1]}")
        elif defaults and name in defaults:
            result[name] = Sourced(defaults[name], "default")
        else:
            raise InputError(f"method {method.id!r} has no preset for {name}: give method.{section}.{name}")
    return result


def _experts(chosen: Any, tasks: TaskSet, method: registry.Method) -> list[str] | None:
    """Return the tasks whose experts are merged, None for all.

    Raises InputError for what is neither a number of tasks nor a list of them, or where the method needs the others.
    """
    if chosen is None:
        return None
    if isinstance(chosen, int) and not isinstance(chosen, bool) and 1 <= chosen <= len(tasks.names):
        chosen = list(tasks.names[:chosen])
    if not isinstance(chosen, list) or not chosen or len(set(map(str, chosen))) < len(chosen):
        wanted = f"a number from 1 to {len(tasks.names)} or a list of different tasks"
        raise InputError(f"checkpoints.experts must be {wanted}, got {chosen!r}")
    for name in chosen:
        if name not in tasks.names:
            hint = did_you_mean(str(name), tasks.names)
            raise InputError(f"checkpoints.experts has {name!r}, which is none of the tasks: {hint}")
    if len(chosen) < len(tasks.names) and (method.adaptive or method.per_task):
        reason = "adapts on the data of every task" if method.adaptive else "has no model for a task without an expert"
        raise InputError(f"method {method.id!r} {reason}: leave checkpoints.experts out, or choose tasks={chosen}")
    return chosen


def _check_integers(plain: Mapping[str, Any]) -> None:
    limits = {
        "limit": (plain["limit"], 1), "seed": (plain["seed"], 0), "checkpoints.seed": (plain["checkpoints"]["seed"], 0),
        "trainer.devices": (plain["trainer"]["devices"], 1), "trainer.chunk": (plain["trainer"]["chunk"], 1),
        "trainer.checkpoint_every": (plain["trainer"]["checkpoint_every"], 1),
        "trainer.eval_batch": (plain["trainer"]["eval_batch"], 1),
    }
    for key, (value, low) in limits.items():
        if value is not None and value < low:
            raise InputError(f"{key} must be at least {low}, got {value}")
    if (place := plain["checkpoints"]["place"]) not in _PLACES:
        raise InputError(f"unknown checkpoints.place {place!r}: {did_you_mean(str(place), _PLACES)}")
    device = str(plain["device"])
    if device.partition(":")[0] not in _DEVICES:
        raise InputError(f"unknown device {device!r}: {did_you_mean(device, _DEVICES)}")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    return [_jsonable(entry) for entry in value] if isinstance(value, list) else value
