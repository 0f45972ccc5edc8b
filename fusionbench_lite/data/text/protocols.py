"""What a family of published tables does with a task: how its texts are read, which split is the test split, how it is judged."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fusionbench_lite.errors import InputError, did_you_mean

_FILE = Path(__file__).with_name("protocols.yaml")
_OF_CLASSES = ("accuracy", "matthews", "f1")
PLAIN = "plain"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the tasks are read and judged; protocols.yaml says what the fields mean."""

    name: str
    longest: int
    style: Literal["pair", "prompt"] = "pair"
    metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    beyond: Literal["refuse", "truncate"] = "refuse"
    source: str = ""
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    def metric(self, task: str, own: str = "accuracy") -> str:
        """Return what a task is judged by; `own` is what its description says, which counts where the protocol says nothing.

        Generated answers are texts: where classes would be compared, they are.
        """
        metric = self.metrics.get(task, own)
        return "exact_match" if self.style == "prompt" and metric in _OF_CLASSES else metric


def names() -> tuple[str, ...]:
    """Return the names of the protocols."""
    return tuple(_table()[0])


def models(name: str) -> tuple[str, ...]:
    """Return the models that a protocol is of."""
    return tuple(_table()[0][name]["models"])


def protocol(name: str | None, model: str) -> Protocol:
    """Return a protocol as it is for a model; None is the model's own.

    Raises InputError for an unknown name, and where no published code of that name has the model.
    """
    table, defaults = _table()
    name = defaults.get(model, PLAIN) if name is None else name
    if name not in table:
        raise InputError(f"unknown protocol {name!r}: {did_you_mean(name, table)}")
    entry, models = table[name], table[name]["models"]
    if model not in models:
        having = [other for other in table if model in table[other]["models"]]
        if not having:
            raise InputError(f"no protocol is of model {model!r}: {did_you_mean(model, table[PLAIN]['models'])}")
        raise InputError(f"protocol {name} is not of {model}: choose one of {', '.join(having)}")
    of_model = models[model]
    merged = {key: {**entry.get(key, {}), **of_model.get(key, {})} for key in ("metrics", "splits", "notes")}
    return Protocol(
        name=name, longest=of_model["longest"], style=of_model.get("style", "pair"), beyond=entry.get("beyond", "refuse"),
        source=entry["source"], caveats=tuple(entry.get("caveats", ())), **merged,
    )


@functools.cache
def _table() -> tuple[dict[str, Any], dict[str, str]]:
    import yaml

    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return content, content.pop("defaults")
