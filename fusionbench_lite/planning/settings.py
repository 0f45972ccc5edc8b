"""What a method is set to: its hyperparameters, and the settings of its adaptation or of its statistics, with their sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fusionbench_lite import registry
from fusionbench_lite.adaptation.streams import KINDS
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.selection import RULES
from fusionbench_lite.fields import REQUIRED, checked, choice, describe, flag, integer, kinds, real
from fusionbench_lite.planning.given import Given, Section

Preset = Mapping[str, tuple[Any, str]]
"""Values of a preset and where they are from, by name."""

ORDERS = ("stored", "shuffled")


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """The settings of an adaptation. Of the examples of each task, `fraction` is the part that is adapted on, `held_out` the
    number that is held out for best_unsupervised. `dropout`: steps run the model as in training, as FusionBench does with
    language models."""

    steps: int = integer(REQUIRED, low=0)
    batch_size: int = integer(REQUIRED, low=1)
    batches: int = integer(REQUIRED, low=1)
    stream: str = choice(REQUIRED, KINDS)
    eval_every: int = integer(REQUIRED, low=1)
    fraction: float = real(1.0, low=0, high=1, open_low=True)
    held_out: int = integer(64, low=0)
    dropout: bool = flag(False, later=True)


@dataclasses.dataclass(frozen=True)
class AdaptationOnBase(Adaptation):
    """Those on a merged model. Of a base that adapts: the selection rule, and the steps, its preset's where None."""

    base_select: str = choice("last", RULES)
    base_steps: int | None = integer(None, low=0, optional=True)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """How statistics of training examples are computed: of how many of each task, in batches of which size, in which order."""

    examples: int = integer(REQUIRED, low=1)
    batch_size: int = integer(REQUIRED, low=1)
    order: str = choice(REQUIRED, ORDERS)


@dataclasses.dataclass(frozen=True)
class Sourced:
    """A setting and where it comes from: "given", "default" or "preset: ..."."""

    value: Any
    source: str


def chosen(
    method: registry.Method, section: Mapping[str, Any], given: Given, steps: int | None, preset: Preset
) -> tuple[dict[str, Sourced], dict[str, Sourced]]:
    """Return the hyperparameters and the settings of a method whose section of the configuration is `section`, all checked.

    `steps` is the key of that name. Raises InputError and MergeError.
    """
    if steps is not None and not method.adaptive:
        raise InputError(f"steps={steps} has no meaning for method {method.id!r}, which adapts nothing: remove it")
    rest = dict(section)
    adaptation = given.adaptation(_part(rest, "adaptation", _adaptation(method)), steps)
    statistics = given.section(("method", "statistics"), _part(rest, "statistics", Statistics) if reads_statistics(method) else {})
    values = given.section(("method",), rest, method.defaults)
    if given.has("method", "id"):  # the file that writes out the other values may be that of another method
        values = Section({name: rest[name] for name in values.given}, values.given)
    others = settings(method, adaptation, statistics, preset)
    return within(hyperparameters(method, values, preset), others), others


def _part(section: dict[str, Any], name: str, declared: type) -> Mapping[str, Any]:
    """Take the settings that a dataclass declares out of a method's section."""
    value = section.pop(name, None) or {}
    if not isinstance(value, Mapping):
        *names, last = kinds(declared)
        raise InputError(f"method.{name} must map {', '.join(names)} and {last}, got {value!r}")
    return value


def _adaptation(method: registry.Method) -> type[Adaptation]:
    return AdaptationOnBase if "merged" in method.inputs else Adaptation


def hyperparameters(method: registry.Method, section: Section, preset: Preset) -> dict[str, Sourced]:
    """Return the checked hyperparameters: what is given wins over a preset, a preset over the default."""
    unknown = {name: value for name, value in section.values.items() if name not in method.defaults}
    chosen = _sourced(method.defaults, section, preset)
    changed = {
        name: sourced.value for name, sourced in chosen.items()
        if sourced.source == "given" or sourced.value != method.defaults[name]
    }
    values = describe(method.configure(**unknown, **changed))
    return {name: dataclasses.replace(sourced, value=values[name]) for name, sourced in chosen.items()}


def reads_statistics(method: registry.Method) -> bool:
    """Say whether the method reads statistics of training examples."""
    return any(name in registry.STATISTIC_INPUTS for name in method.inputs)


def settings(method: registry.Method, adaptation: Section, statistics: Section, preset: Preset) -> dict[str, Sourced]:
    """Return the checked settings of the method's adaptation or of its statistics, empty where it has neither."""
    if reads_statistics(method):
        return _settings(method, "statistics", Statistics, statistics, preset)
    if method.adaptive:
        return _settings(method, "adaptation", _adaptation(method), adaptation, preset)
    return {}


def known_by(settings: Mapping[str, Sourced]) -> dict[str, Any]:
    """Return the settings that a record is known by: without those that were added when there were records already, where they
    have their default."""
    later = {field.name: field.default for field in dataclasses.fields(AdaptationOnBase) if field.metadata["later"]}
    return {name: setting.value for name, setting in settings.items() if name not in later or setting.value != later[name]}


def within(hyperparameters: Mapping[str, Sourced], settings: Mapping[str, Sourced]) -> dict[str, Sourced]:
    """Return the hyperparameters without presets that are numbers of steps beyond all that were asked for."""
    return {
        name: Sourced(None, "default") if name.endswith("_steps") and chosen.source.startswith("preset")
        and chosen.value is not None and "steps" in settings and chosen.value > settings["steps"].value else chosen
        for name, chosen in hyperparameters.items()
    }


def _settings(method: registry.Method, name: str, declared: type, section: Section, preset: Preset) -> dict[str, Sourced]:
    """Return the settings of a section of the method's configuration.

    They stay as they are written: the keys of records tell 1 from 1.0.
    """
    where = f"method.{name}."
    defaults = {key: field.default for key, field in kinds(declared).items()}
    checked(declared, {key: value for key, value in section.values.items() if key not in defaults}, where)
    sourced = _sourced(defaults, section, preset)
    for key, setting in sourced.items():
        if setting.value is REQUIRED:
            raise InputError(f"method {method.id!r} has no preset for {key}: give {where}{key}")
    checked(declared, {key: setting.value for key, setting in sourced.items()}, where)
    return sourced


def _sourced(defaults: Mapping[str, Any], section: Section, preset: Preset) -> dict[str, Sourced]:
    """Return the value of every name: what is given, else a preset, else the default, where the section may write out another."""
    sourced: dict[str, Sourced] = {}
    for name, default in defaults.items():
        written = section.values.get(name)
        if name in section.given:
            sourced[name] = Sourced(written, "given")
        elif name in preset:
            sourced[name] = Sourced(preset[name][0], f"preset: {preset[name][1]}")
        else:
            sourced[name] = Sourced(default if written is None else written, "default")
    return sourced
