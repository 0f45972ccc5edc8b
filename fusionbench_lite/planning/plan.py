"""From a configuration to what will be run: every name resolved, every value checked, torch not yet imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fusionbench_lite import registry, suites
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.fields import one, some_tasks, verify
from fusionbench_lite.paths import cache_dir, expanded, folder, ignores_case
from fusionbench_lite.planning import given, presets, task_sets
from fusionbench_lite.planning import settings as method_settings
from fusionbench_lite.planning.config import Checkpoints, Config, Data, Precision, Trainer
from fusionbench_lite.planning.given import Section
from fusionbench_lite.planning.settings import Sourced
from fusionbench_lite.suites import SuiteKind, Wanted

_KEYS = tuple(field.name for field in dataclasses.fields(Config))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One run, resolved. `settings` are those of the adaptation or of the statistics (empty where there is neither); `wanted`
    is the suite that it works on, `task_set` the label of its tasks, `experts` those that are merged, None for all; `place` is
    where what a method makes of the experts stays; `config` is the configuration as it is recorded."""

    method: str
    hyperparameters: Mapping[str, Sourced]
    settings: Mapping[str, Sourced]
    wanted: Wanted
    task_set: str
    experts: tuple[str, ...] | None
    place: str
    select: str
    overwrite: bool
    results_dir: Path
    trainer: Mapping[str, Any]
    logger: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def kind(self) -> SuiteKind:
        """The modality of the run."""
        return suites.kind_of(self.model)

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.wanted.model

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are evaluated, in order."""
        return self.wanted.tasks

    @property
    def seen(self) -> tuple[str, ...]:
        """Those whose experts are merged, in order of the tasks: an adaptation reads examples of no other."""
        return tuple(task for task in self.tasks if self.experts is None or task in self.experts)

    @property
    def seed(self) -> int:
        """The seed of draws and streams."""
        return self.wanted.seed

    @property
    def reads_training(self) -> bool:
        """Whether the run reads examples of the training split: for statistics, held out, or what it learns from."""
        return self.training_examples != 0

    @property
    def training_examples(self) -> int | None:
        """How many training examples of a task the run reads; None where its steps may read all."""
        method = registry.get(self.method)
        if method.reads_training(self.values):
            return None
        statistics = self.setting("examples") if method_settings.reads_statistics(method) else 0
        return int(statistics + (self.setting("held_out") if "held_out" in self.settings else 0))

    @property
    def config_precision(self) -> str:
        """Lightning's name of the precision."""
        return str(Precision[self.wanted.precision].value)

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
    _check(plain)
    wanted, task_set = _wanted(plain, config.precision.name)
    if not isinstance(plain["method"], Mapping) or "id" not in plain["method"]:
        raise InputError(f"no method is named by method={plain['method']}: write method=NAME")
    section = dict(plain["method"])
    method = registry.get(_method_id(section))
    preset = presets.lookup(method.id, wanted, task_set, plain["preset"])
    wanted = _told(wanted, presets.of_suite(method.id, wanted, task_set, plain["preset"]))
    hyperparameters, settings = method_settings.chosen(method, section, given.read(overrides), plain["steps"], preset)
    if config.select.name == "best_unsupervised" and "held_out" in settings and settings["held_out"].value == 0:
        raise InputError("select=best_unsupervised compares losses on held-out images: add method.adaptation.held_out=64")
    values = {name: setting.value for name, setting in hyperparameters.items()}
    experts = _experts(plain["checkpoints"]["experts"], wanted.tasks, method.id, method.needs_expert(values))
    if wanted.tensors == "blocks_on_mean" and experts is not None and len(experts) < len(wanted.tasks):
        raise InputError(
            "checkpoints.tensors=blocks_on_mean takes the mean of every task's expert: leave checkpoints.experts out, or choose "
            f"tasks={list(experts)}"
        )
    plan = Plan(
        method=method.id, hyperparameters=hyperparameters, settings=settings, wanted=wanted, task_set=task_set,
        experts=experts, place=plain["checkpoints"]["place"],
        select=config.select.name, overwrite=plain["overwrite"], results_dir=folder("results_dir", expanded(plain["results_dir"])),
        trainer=plain["trainer"], logger=plain["logger"] or {},
        config=_jsonable(plain | {"select": config.select.name, "precision": config.precision.name}),
    )
    base_of(plan)  # a base that cannot be is refused before anything is loaded
    return plan


def _wanted(plain: dict[str, Any], precision: str) -> tuple[Wanted, str]:
    """Return the checked suite of a configuration and the label of its tasks, which become the configuration's where it names
    none."""
    model, checkpoints, trainer = plain["model"], plain["checkpoints"], plain["trainer"]
    data_dir = _path(plain["data_dir"])
    kind = suites.kind_of(model.get("name"))
    plain["tasks"] = kind.models[model["name"]] if plain["tasks"] is None else plain["tasks"]
    tasks = task_sets.resolve(plain["tasks"], data_dir, kind.tasks(data_dir))
    cache = folder("cache_dir", cache_dir(plain["cache_dir"]))
    _check_case(tasks.names, cache)
    usual = dataclasses.asdict(Data())
    wanted = kind.check(Wanted(
        model=model["name"], tasks=tasks.names, family=checkpoints["family"], layout=model.get("layout"), data_dir=data_dir,
        cache=cache, seed=plain["seed"], checkpoints_seed=checkpoints["seed"],
        recipe=tuple(sorted((name, _hashable(value)) for name, value in (checkpoints["recipe"] or {}).items())),
        checkpoints=_path(checkpoints["dir"]), manifest=_path(checkpoints["manifest"]),
        data=tuple(sorted((name, value) for name, value in plain["data"].items() if value != usual[name])),
        limit=plain["limit"], device=plain["device"], precision=precision, eval_batch=trainer["eval_batch"],
        tensors=checkpoints["tensors"],
    ))
    return wanted, tasks.label


def _told(wanted: Wanted, preset: Mapping[str, tuple[Any, str]]) -> Wanted:
    """Return what is wanted with what presets say of the suite, where no key does."""
    options = {name: value for name, (value, _) in preset.items()}
    tensors = options.pop("tensors", "auto")
    return dataclasses.replace(
        wanted, tensors=tensors if wanted.tensors == "auto" else wanted.tensors, options=tuple(sorted(options.items()))
    )


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_case(tasks: Sequence[str], cache: Path) -> None:
    """Refuse two tasks whose experts would be one file: names that differ only in case, where the file system ignores that."""
    folded: dict[str, str] = {}
    for task in tasks:
        other = folded.setdefault(task.casefold(), task)
        if other != task and ignores_case(cache):
            raise InputError(
                f"tasks {other!r} and {task!r} differ only in upper and lower case, which cache_dir {cache} does not tell apart: "
                "rename one, or choose another cache_dir"
            )


def _path(name: str | None) -> Path | None:
    return expanded(name) if name is not None else None


def base_of(plan: Plan) -> Plan | None:
    """Return the run whose merged model a method's adapters sit on, None for methods without.

    The base runs with its own presets, on the same data, seed and device.
    """
    if "merged" not in registry.get(plan.method).inputs or plan.values.get("base") is None:
        return None
    method = registry.get(plan.values["base"])
    if method.per_task or method.routed or "merged" in method.inputs:
        raise InputError(f"method {plan.method!r} needs one merged model as its base, which {method.id!r} is not")
    preset = presets.lookup(method.id, plan.wanted, plan.task_set)
    steps = plan.setting("base_steps")
    asked = Section({"steps": steps}, frozenset({"steps"})) if steps is not None else Section()
    return dataclasses.replace(
        plan, method=method.id, hyperparameters=method_settings.hyperparameters(method, Section(), preset),
        settings=method_settings.settings(method, asked, Section(), preset),
        config={**plan.config, "method": {"id": method.id}}, overwrite=False,
    )


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


def _experts(chosen: Any, tasks: Sequence[str], method: str, needed: str | None) -> tuple[str, ...] | None:
    """Return the tasks whose experts are merged, None for all.

    Raises InputError for what is neither a number of tasks nor a list of them, or where the others are `needed` for a reason.
    """
    experts: list[str] | None = one("checkpoints.experts", chosen, some_tasks(None, tuple(tasks), optional=True))
    if experts is None:
        return None
    if len(experts) < len(tasks) and needed is not None:
        raise InputError(f"method {method!r} {needed}: leave checkpoints.experts out, or choose tasks={experts}")
    return tuple(experts)


def _check(plain: Mapping[str, Any]) -> None:
    verify(Config, plain)
    verify(Trainer, plain["trainer"], "trainer.")
    verify(Checkpoints, plain["checkpoints"], "checkpoints.")
    verify(Data, plain["data"], "data.")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    return [_jsonable(entry) for entry in value] if isinstance(value, list) else value
