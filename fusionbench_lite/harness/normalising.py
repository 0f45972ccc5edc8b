"""Scores relative to the individual models: merged / individual x 100 per set, and their mean (doGe, Table 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.evaluation.intervals import Interval, percentiles, resample
from fusionbench_lite.harness import sets
from fusionbench_lite.tables.statistics import average_interval

PUBLISHED = "published"
_ALIKE = ("chat_template", "task", "metric", "filter", "shots", "version", "data", "prompts")
Individual = Mapping[str, Any] | None
"""The record of a model that was evaluated here, or None for the published one."""


def check(name: str, individual: Individual) -> None:
    """Raise InputError, before anything runs, for a set without a reference or with one that is 0."""
    key = f"individual.{name}"
    if individual is None:
        known = sets.published()
        if name not in known:
            raise InputError(f"{key}={PUBLISHED}: {sets.SOURCE} has no {name!r}, {did_you_mean(name, known)} Else give a record")
        return
    folder, scores = individual["model"]["folder"], individual["sets"]
    if name not in scores:
        raise InputError(f"{key}: {folder} was evaluated on {', '.join(scores)} only: evaluate it on {name} too")
    if scores[name]["value"] <= 0:
        raise InputError(f"{key}: {folder} scores {scores[name]['value']:g}, by which nothing is divided: choose another model")


def relative(record: Mapping[str, Any], individual: Mapping[str, Individual]) -> dict[str, Any]:
    """Return scores relative to individual models by set, their mean, and what a reader has to know.

    individual: for some of the record's sets the record of an individual model, or None for Table 10's. Raises InputError
    where the two were not measured alike: another prompt, another number of shots, other examples.
    """
    parts = {name: _published(name, record) if of is None else _own(name, record, of) for name, of in individual.items()}
    values, intervals = [part["value"] for part in parts.values()], [part["interval"] for part in parts.values()]
    return {
        "sets": parts, "average": float(np.mean(values)),
        "interval": None if None in intervals else list(average_interval(values, intervals)),
        "caveats": _caveats([name for name, of in individual.items() if of is None], list(parts)),
    }


def _caveats(published: Sequence[str], names: Sequence[str]) -> list[str]:
    caveats = [sets.PROTOCOL] if published else []
    if {"humaneval", "mbpp"} & set(published):
        caveats.append(sets.INDIVIDUAL)
    left_out = [one.title for one in sets.published().values() if one.name not in names]
    if left_out and set(names) <= set(sets.published()):
        titles = ", ".join(sets.published()[name].title for name in names)
        caveats.append(f"mean of {titles}; {sets.SOURCE} has {', '.join(left_out)} too")
    return caveats


def _published(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the score relative to Table 10's individual model, which is taken as exact."""
    reference, measured = sets.published()[name].reference, record["sets"][name]
    if reference is None:
        raise InputError(f"{sets.SOURCE} has no individual model for {name!r}")
    interval = measured["interval"]
    return {
        "value": 100 * (measured["value"] / reference.value),
        "interval": None if interval is None else [100 * end / reference.value for end in interval],
        "individual": reference.value, "model": reference.model, "source": sets.SOURCE,
    }


def _own(name: str, record: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the score relative to a model that was evaluated here, on the same examples."""
    measured, individual = record["sets"][name], other["sets"][name]
    here, there = ({**one["sets"][name], "chat_template": one["settings"]["chat_template"]} for one in (record, other))
    for what in _ALIKE:
        # each model's own chat template makes another text of the same prompt
        if here[what] != there[what] and not (what == "prompts" and here["chat_template"]):
            who = other["model"]["folder"]
            raise InputError(f"individual.{name}: {what} is {here[what]} here and {there[what]} for {who}: evaluate both alike")
    interval = _paired(measured["scores"], individual["scores"], name)
    return {
        "value": 100 * (measured["value"] / individual["value"]), "interval": None if interval is None else list(interval),
        "individual": individual["value"], "model": other["model"]["folder"], "source": other["key"],
    }


def _paired(merged: Sequence[float] | None, individual: Sequence[float] | None, name: str) -> Interval | None:
    """Return the bootstrap interval of the ratio of two means on the same examples, drawn together."""
    if merged is None or individual is None:
        return None
    draws = resample(_ratio, [np.asarray(merged), np.asarray(individual)], "harness", name)
    return percentiles(draws) if np.isfinite(draws).all() else None


def _ratio(columns: Sequence[NDArray[Any]], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """100 x the mean of the first column by that of the second; infinite in a resample where the second is 0."""
    top, bottom = drawn @ columns[0], drawn @ columns[1]
    ratio: NDArray[np.float64] = np.divide(100 * top, bottom, out=np.full_like(top, np.inf), where=bottom > 0)
    return ratio
