"""The sets of doGe's Table 10 by name, and what is refused before a model is read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fusionbench_lite.errors import InputError

SOURCE = "doGe, Table 10"
PROTOCOL = (
    "Table 10 was measured with the prompts and the extraction of the DARE code (zero-shot, greedy); the harness' differ, so only "
    "the trend is comparable"
)
INDIVIDUAL = (
    "Table 10 divides HumanEval and MBPP by WizardLM-13B, not by the code model: its entries are multiples of 1/60 and 1/170, "
    "which WizardLM solves of 164 and 500"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """The individual model that a paper divides by, and its accuracy there."""

    model: str
    value: float
    correct: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Set:
    """A set to evaluate on: `task`, `metric` and `filter` in the harness' names; None leaves the choice to the task's own order.

    `folder` is where the harness keeps it, `unsafe` says that answers are run as programs, `refused` why it cannot be evaluated.
    """

    name: str
    task: str
    title: str = ""
    items: int | None = None
    folder: str | None = None
    metric: str | None = None
    filter: str | None = None
    unsafe: bool = False
    refused: str | None = None
    reference: Reference | None = None
    published: str = ""
    here: str = ""


@functools.cache
def published() -> Mapping[str, Set]:
    """Return the sets of Table 10 in its order."""
    return {name: _set(name, entry) for name, entry in _content()["sets"].items()}


def models() -> Mapping[str, Mapping[str, str]]:
    """Return where Table 10's models are: repo, and for some elsewhere and about."""
    found: Mapping[str, Mapping[str, str]] = _content()["models"]
    return found


def asked(text: str) -> tuple[Set, ...]:
    """Return the sets of `a,b` or `[a,b]`: those of Table 10, else tasks of the harness by its own names.

    Raises InputError for none, for one that is named twice and for one that no harness evaluates.
    """
    names = [name.strip(" '\"") for name in text.strip("[] ").split(",")]
    if not all(names):
        raise InputError(f"tasks={text} has an empty name: write tasks=gsm8k,math")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"tasks={text} has {twice!r} {names.count(twice)} times: name every task once")
    sets = tuple(published().get(name) or Set(name=name, task=name) for name in names)
    for one in sets:
        if one.refused is not None:
            raise InputError(one.refused)
    return sets


def confirm(names: Sequence[str], confirmed: bool) -> None:
    """Raise InputError where answers would be run as programs and nobody said that they may."""
    if names and not confirmed:
        raise InputError(
            f"{' and '.join(names)}: programs that the model writes would run on this machine, with your rights: say "
            "unsafe_code=true where they can harm nothing, such as in a container"
        )


def _content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("sets.yaml").read_text(encoding="utf-8"))
    return content


def _set(name: str, entry: dict[str, Any]) -> Set:
    about = entry.pop("reference")
    value = about["value"] if "value" in about else about["correct"] / entry["items"]
    reference = Reference(model=about["model"], value=value, correct=about.get("correct"))
    return Set(name=name, **{"task": name, **entry}, reference=reference)
