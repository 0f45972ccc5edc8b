"""What a method is set to: its hyperparameters, and the settings of its adaptation or of its statistics, with their sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fusionbench_lite import registry
from fusionbench_lite.adaptation.streams import KINDS
from fusionbench_lite.errors import InputError, MergeError, did_you_mean
from fusionbench_lite.evaluation.selection import RULES
from fusionbench_lite.fields import describe
from fusionbench_lite.running import method_inputs
from fusionbench_lite.suites.backbones import Backbone

Preset = Mapping[str, tuple[Any, str]]
"""Values of a preset and where they are from, by name."""

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


def hyperparameters(
    method: registry.Method, given: Mapping[str, Any], preset: Preset, *, named: bool = False
) -> dict[str, Sourced]:
    """Return the checked hyperparameters: what is given wins over a preset, a preset over the default.

    A preset that was asked for by name also replaces defaults written out in the method's configuration.
    """
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
    values = describe(checked)
    return {name: dataclasses.replace(setting, value=values[name]) for name, setting in chosen.items()}


def settings(
    method: registry.Method, adaptation: Mapping[str, Any], statistics: Mapping[str, Any], steps: Any, preset: Preset
) -> dict[str, Sourced]:
    """Return the checked settings of the method's adaptation or of its statistics, empty where it has neither."""
    found = _of_adaptation(method, adaptation, steps, preset)
    if method_inputs.is_needed(method):
        found = _sourced(method, "statistics", method_inputs.SETTINGS, statistics, preset)
        for name, setting in found.items():
            method_inputs.check(name, setting.value)
    return found


def caveats(chosen: Mapping[str, Sourced], backbone: Backbone) -> tuple[str, ...]:
    """Return the sentences that a result needs because of how its method was set."""
    zeros = chosen.get("virtual_zeros")
    if zeros is None or zeros.source != "default" or not backbone.is_clip or backbone.release != "own":
        return ()
    return (
        "virtual_zeros is 0: nothing says which release these experts stand in for, and with experts of ta and tall this method "
        "counts the zeros of the text side. The manifest.json of a fine-tuning says it (family).",
    )


def within(hyperparameters: Mapping[str, Sourced], settings: Mapping[str, Sourced]) -> dict[str, Sourced]:
    """Return the hyperparameters without presets that are numbers of steps beyond all that were asked for."""
    return {
        name: Sourced(None, "default") if name.endswith("_steps") and chosen.source.startswith("preset")
        and chosen.value is not None and "steps" in settings and chosen.value > settings["steps"].value else chosen
        for name, chosen in hyperparameters.items()
    }


def _of_adaptation(method: registry.Method, given: Mapping[str, Any], steps: Any, preset: Preset) -> dict[str, Sourced]:
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
    method: registry.Method, section: str, names: tuple[str, ...], given: Mapping[str, Any], preset: Preset,
    defaults: Mapping[str, Any] | None = None,
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
