"""The page of all methods: what their docstrings, hyperparameter fields, configurations and records say.

`page` puts it together; `described` is what it knows of one method, and raises InputError where something is missing.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionbench_lite import registry
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning import presets, task_sets
from fusionbench_lite.registry import FAMILIES
from fusionbench_lite.running.experiment import Experiment
from fusionbench_lite.tables import render
from fusionbench_lite.tables.families import family, label
from fusionbench_lite.tables.frame import Table
from fusionbench_lite.tables.records import Record
from fusionbench_lite.tables.rows import Rows
from fusionbench_lite.weights import matrices

ABSENT = "–"
COMMAND = ("python", "-m", "fusionbench_lite")
NOTATION = (
    "T experts θ_t were fine-tuned from the pretrained weights θ0; θ̄ is their mean, τ_t = θ_t - θ0 a task vector and d the "
    "number of weights of one model. A matrix is m × n, p = min(m, n); adapters have rank r. SVD_k keeps the k leading "
    "singular components, ⊙ is the product by entries, 1[…] is 1 where the condition holds and 0 else."
)
_CITATION = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")
_COST = re.compile(r"\bCost:\s+(.+)\Z", re.DOTALL)
_MARKS = "\u0300-\u036f"
_NAMES = r"`\w+`(?:, `\w+`)*: "


@dataclasses.dataclass(frozen=True, kw_only=True)
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
        id=method.id, what=what, command=command, arguments=tuple(shlex.split(command))[len(COMMAND) :], paper=_line(paper[1]),
        formula=_line(formula), notes=_line(rest[: cost.start()]), cost=_line(cost[1]),
        meanings={name: meanings[name] for name in method.defaults},
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


def page(experiment: Experiment, rows: Rows, records: list[Record], table: Table, folder: Path | None = None) -> str:
    """Return the page in Markdown; `folder` holds the methods' YAML files."""
    folder = folder or config_dir() / "method"
    order = [override.removeprefix("method=") for overrides in experiment.rows.values() for override in overrides]
    ids = sorted(registry.names(), key=lambda id: (FAMILIES.index(family(id)), [*order, id].index(id)))
    methods = [described(registry.get(id), folder) for id in ids]
    results = Results(experiment, rows, records, table)
    lines = [
        "# Methods", "", f"Generated by `make docs` from docstrings, `conf/method/` and the records of "
        f"`experiment={experiment.name}`.", "", NOTATION, "", "## All methods", "",
        f"Score: {table.average.phrase} on {_setting(experiment, 'tasks')}, mean ± standard deviation over seeds where there "
        "are several. Storage: what a server of all tasks keeps, in MB. Seconds: of merging and adaptation. "
        f"{ABSENT}: no record of the method's command.", "",
        *_table(
            ("method", "name", "what", "paper", "family", "models", "storage", "score", "seconds"),
            (_summary(description, results) for description in methods),
        ),
    ]
    for description in methods:
        lines += ["", *_section(description, results)]
    policies = explained(inspect.getdoc(matrices.is_factorised) or "")
    lines += ["", "## Which tensors `matrices` selects", ""]
    lines += _table(("value", "tensors"), ((f"`{name}`", _cell(policies[name])) for name in matrices.MATRIX_POLICIES))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


class Results:
    """The experiment's rows, and what their records say."""

    def __init__(self, experiment: Experiment, rows: Rows, records: list[Record], table: Table) -> None:
        self.experiment = experiment
        shown = render.cells(table)
        there = table.frame["seeds"] > 0
        self._cells = {name: shown.iloc[i] for i, name in enumerate(table.frame.index) if there.iloc[i]}
        by_key = {record.key: record for record in records}
        self._records = {row.name: [by_key[key] for key in row.keys if key in by_key] for row in rows.rows}
        self._methods = {row.name: row.method for row in rows.rows}

    def score(self, name: str | None) -> str:
        """The average of a row, or ABSENT."""
        return str(self._cells[name][render.AVERAGE_HEADER]) if name in self._cells else ABSENT

    def seconds(self, name: str | None) -> str:
        """The seconds of merging and adaptation, or ABSENT."""
        return str(self._cells[name][render.SECONDS_HEADER]) if name in self._cells else ABSENT

    def storage(self, name: str | None) -> dict[str, int]:
        """The bytes that are kept, by kind; empty for adaptive methods and where there is no record."""
        stored = (dict(record.data.get("storage", {})) for record in self._records.get(name or "", []))
        return next((bytes_ for bytes_ in stored if bytes_), {})

    def of(self, id: str) -> dict[str, tuple[str, ...]]:
        """The rows of a method: name and overrides."""
        return {
            name: overrides for name, overrides in self.experiment.rows.items()
            if f"method={id}" in overrides or self._methods.get(name) == id
        }


def _summary(description: Description, results: Results) -> tuple[str, ...]:
    row = main_row(description, results.experiment)
    stored = results.storage(row)
    method = registry.get(description.id)
    size = f"{sum(stored.values()) / 1e6:.1f}" if stored else "" if method.adaptive else ABSENT
    return (
        f"[`{description.id}`](#{description.id})", _cell(label(description.id)), _cell(description.what),
        _cell(description.paper), family(description.id), "per task" if method.per_task else "one", size,
        results.score(row), results.seconds(row),
    )


def _section(description: Description, results: Results) -> Iterator[str]:
    method = registry.get(description.id)
    yield from (f"## {description.id}", "", f"**{_text(label(description.id))}.** {_text(description.what)}", "")
    yield from (f"> {_text(description.formula)}", "")
    yield from (_text(description.notes), "")
    yield from (f"Paper: {_text(description.paper)}. Cost: {_text(description.cost)}", "")
    stored = results.storage(main_row(description, results.experiment))
    if method.per_task and stored:
        parts = ", ".join(f"{name.replace('_', ' ')} {size / 1e6:.1f}" for name, size in stored.items())
        yield from (f"Storage in MB: {parts}.", "")
    yield from ("```sh", description.command, "```", "")
    if method.defaults:
        yield from _table(("hyperparameter", "default", "accepts", "meaning"), (
            (f"`{name}`", f"`{_plain(default)}`", _cell(method.accepted[name]), _cell(description.meanings[name]))
            for name, default in method.defaults.items()
        ))
        yield ""
    yield from _presets(description.id, results.experiment)
    rows = results.of(description.id)
    if rows:
        yield from _table(("row", "overrides", "score", "seconds"), (
            (_cell(name), f"`{' '.join(overrides)}`", results.score(name), results.seconds(name))
            for name, overrides in rows.items()
        ))
    else:
        yield f"No row of `experiment={results.experiment.name}`."


def _presets(id: str, experiment: Experiment) -> Iterator[str]:
    """Say what is set for this model and these tasks where the configuration leaves it open."""
    tasks = task_sets.resolve(_setting(experiment, "tasks"), None)
    by_source: dict[str, list[str]] = {}
    for name, (value, source) in presets.lookup(id, _setting(experiment, "model"), tasks).items():
        by_source.setdefault(source, []).append(f"`{name}` {_plain(value)}")
    if by_source:
        said = "; ".join(f"{', '.join(settings)} ({_text(source)})" for source, settings in by_source.items())
        yield from (f"Presets here: {said}.", "")


def _setting(experiment: Experiment, key: str) -> str:
    """Return what the experiment sets for all of its rows, such as its tasks."""
    return dict(override.split("=", 1) for override in experiment.defaults)[key]


def _table(heads: tuple[str, ...], lines: Any) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ("---",) * len(heads), *lines)]


def _plain(value: Any) -> str:
    """A value as it is written in YAML and on the command line."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def _line(text: str) -> str:
    return " ".join(text.split())


def _text(text: str) -> str:
    """Escape what Markdown would read as markup, outside of `code`; "As ID" becomes a link to the method."""
    parts = text.split("`")
    for i in range(0, len(parts), 2):
        escaped = re.sub(rf"([\\*<]|\](?=\()|(?<![\w{_MARKS}])_|_(?!\w))", r"\\\1", parts[i])
        parts[i] = re.sub(r"\b([Aa]s) (\w+)", _linked, escaped)
    return "`".join(parts)


def _linked(match: re.Match[str]) -> str:
    return f"{match[1]} [{match[2]}](#{match[2]})" if match[2] in registry.names() else match[0]


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")
