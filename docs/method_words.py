"""A method in words: what its docstrings, its hyperparameter fields and the header of its configuration say.

`described` raises InputError where something is missing that the pages need.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from fusionbench_lite import registry
from fusionbench_lite.errors import InputError
from fusionbench_lite.running.experiment import Experiment

COMMAND = ("python", "-m", "fusionbench_lite")
_CITATION = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")
_COST = re.compile(r"\bCost:\s+(.+)\Z", re.DOTALL)
_NAMES = r"`\w+`(?:, `\w+`)*: "


@dataclasses.dataclass(frozen=True)
class Description:
    """A method in words: `meanings` explains the hyperparameters, `arguments` are those of the command."""

    id: str
    what: str
    command: str
    arguments: tuple[str, ...]
    paper: str
    formula: str
    notes: str
    cost: str
    meanings: Mapping[str, str]


def described(method: registry.Method, folder: Path) -> Description:
    """Describe a method from its docstrings and from the header of its YAML in `folder`."""
    text = inspect.getdoc(method.function) or ""
    formula, _, rest = text.partition("\n\n")
    cost = _COST.search(rest)
    module = (sys.modules[method.function.__module__].__doc__ or "").partition("\n\n")[0]
    paper = _CITATION.search(text) or _CITATION.search(module)
    meanings = explained(*(cls.__doc__ or "" for cls in reversed(method.hyperparameters.__mro__[:-1])))
    lacking = [name for name, found in (("formula", formula), ("Cost: sentence", cost), ("paper", paper)) if not found]
    lacking += [f"explanation of `{name}`" for name in method.defaults if name not in meanings]
    if cost is None or paper is None or lacking:
        raise InputError(f"method {method.id}: its docstrings lack {', '.join(lacking)}")
    command, what = header(method.id, folder)
    return Description(
        method.id, what, command, tuple(shlex.split(command))[len(COMMAND) :], _line(paper[1]), _line(formula),
        _line(rest[: cost.start()]), _line(cost[1]), {name: meanings[name] for name in method.defaults},
    )


def header(id: str, folder: Path) -> tuple[str, str]:
    """Return the command and the description that the first two comments of a method's YAML are."""
    path = folder / f"{id}.yaml"
    first, second, *_ = [*path.read_text(encoding="utf-8").splitlines(), "", ""]
    if tuple(first.removeprefix("# ").split())[: len(COMMAND)] != COMMAND or not second.startswith("# "):
        raise InputError(f"{path}: it must start with '# {' '.join(COMMAND)} ...' and a comment that says what it is")
    return first.removeprefix("# "), second.removeprefix("# ")


def explained(*docstrings: str) -> dict[str, str]:
    """Return what docstrings say of each name as `name`: text, or `name`, `name`: text, up to the next name or the
    end of the paragraph; a later one wins."""
    found: dict[str, str] = {}
    for paragraph in (part for docstring in docstrings for part in inspect.cleandoc(docstring).split("\n\n")):
        pieces = re.split(f"({_NAMES})", _line(paragraph))
        for names, text in zip(pieces[1::2], pieces[2::2], strict=True):
            found |= dict.fromkeys(re.findall(r"`(\w+)`", names), text.strip().rstrip(".;,"))
    return found


def main_row(description: Description, experiment: Experiment) -> str | None:
    """Return the row of the experiment that is run by the method's own command, no other: whose score is the method's."""
    return next((name for name, overrides in experiment.rows.items() if overrides == description.arguments), None)


def main_rows(experiment: Experiment, folder: Path) -> dict[str, str]:
    """Return the main row of every method that has one: {id: row}."""
    found = {id: main_row(described(registry.get(id), folder), experiment) for id in registry.names()}
    return {id: name for id, name in found.items() if name is not None}


def _line(text: str) -> str:
    return " ".join(text.split())
