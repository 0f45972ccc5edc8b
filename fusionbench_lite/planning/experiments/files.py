"""The file of a published table, `experiments/PAPER/TABLE.yaml`, read and checked. docs/experiments.md describes it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.evaluation.columns import AVERAGE
from fusionbench_lite.evaluation.selection import RULES
from fusionbench_lite.paths import experiments_dir
from fusionbench_lite.planning.experiments.statistics import REDUCTIONS, UNITS, parsed

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TOP = ("title", "question", "published", "seeds", "select", "defaults", "columns", "rows", "cells", "unanswered", "claims")
_NUMBER = ("setting", "model", "num_tasks", "method", "variant", "column", "metric")
"""Fields of a published number by which a line finds it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A row, a column, or what one cell has of its own.

    `statistic` and what goes with it (`of` another row, `over` several lists of overrides that are reduced to one number) may
    stand on any of them; `published` are fields of the published number, `mini` the overrides in place of `overrides` on the
    embedded suites. A column may be of some rows `only`, as one of gains is.
    """

    name: str
    group: str = ""
    note: str = ""
    overrides: tuple[str, ...] = ()
    mini: tuple[str, ...] | None = None
    statistic: str | None = None
    of: str | None = None
    over: tuple[tuple[str, ...], ...] = ()
    reduce: str | None = None
    unit: str | None = None
    published: Mapping[str, str] | None = None
    select: str | None = None
    only: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Special:
    """What one cell has of its own: a line, or nothing at all where `omitted` says why."""

    line: Line
    omitted: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """An ordering that the paper's text draws from a column of the table: one row better than another."""

    better: str
    than: str
    column: str
    says: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table to be reproduced. `special` are cells by (row, column); `unanswered` are pairs of fields and a reason; `scale` is
    published, or mini for its twin on the embedded suites."""

    name: str
    title: str
    question: str
    published: str | None
    seeds: tuple[int, ...]
    select: str
    defaults: tuple[str, ...]
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    special: Mapping[tuple[str, str], Special]
    unanswered: tuple[tuple[Mapping[str, str], str], ...] = ()
    claims: tuple[Claim, ...] = ()
    scale: str = "published"
    notes: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name, of which a twin has one of its own."""
        return self.name if self.scale == "published" else f"{self.name}-{self.scale}"


def paths() -> dict[str, Path]:
    """Return the files of all experiments by name, such as mini/demo and adarank/table_1."""
    root = experiments_dir()
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def names() -> list[str]:
    """Return the names of the experiments that reproduce published tables, as those tables are ordered."""
    return sorted((name for name in paths() if not name.startswith("mini/")), key=_place)


def _place(name: str) -> tuple[int, str, int]:
    papers = ("doge", "adamerging", "metamerging", "adarank")
    paper, _, table = name.partition("/")
    kind, _, number = table.rpartition("_")
    return (papers.index(paper) if paper in papers else len(papers), kind, int(number) if number.isdigit() else 0)


@functools.lru_cache(maxsize=256)
def read(name: str) -> Experiment:
    """Return the experiment of this name. Raises InputError with the nearest name, or with file, place and reason."""
    known = paths()
    if name not in known:
        raise InputError(f"unknown experiment {name!r}: {did_you_mean(name, known)}")
    return parse(known[name].read_text(encoding="utf-8"), name, str(known[name]))


def parse(text: str, name: str, where: str) -> Experiment:
    """Return the experiment that a text holds; `where` stands at the head of errors."""
    try:
        content = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: an experiment is a mapping with title, rows and columns")
    try:
        return _experiment(content, name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _experiment(content: Mapping[str, Any], name: str) -> Experiment:
    _keys("an experiment", content, _TOP)
    for key in ("title", "rows", "columns"):
        if not content.get(key):
            raise InputError(f"{key} is missing")
    rows = tuple(_line(entry, "row") for entry in content["rows"])
    columns = tuple(_line(entry, "column") for entry in content["columns"])
    for kind, lines in (("rows", rows), ("columns", columns)):
        seen = [line.name for line in lines]
        if twice := next((one for one in seen if seen.count(one) > 1), None):
            raise InputError(f"two {kind} are called {twice!r}; give each its own name")
    select = _one_of("select", content.get("select", "last"), RULES)
    experiment = Experiment(
        name=name, title=str(content["title"]), question=str(content.get("question", "")), published=content.get("published"),
        seeds=_seeds(content.get("seeds", [0])), select=select, defaults=_strings("defaults", content.get("defaults", [])),
        rows=rows, columns=columns, special=dict(_special(content.get("cells", []), rows, columns)),
        unanswered=tuple(_unanswered(entry) for entry in content.get("unanswered", [])),
        claims=tuple(Claim(**entry) for entry in content.get("claims", [])),
    )
    _check_names(experiment)
    return experiment


def _check_names(experiment: Experiment) -> None:
    """Refuse claims and statistics that name a row or column that the table has not."""
    rows = [line.name for line in experiment.rows]
    columns = [line.name for line in experiment.columns]
    for claim in experiment.claims:
        for kind, named, known in (("row", claim.better, rows), ("row", claim.than, rows), ("column", claim.column, columns)):
            if named not in known:
                raise InputError(f"a claim names the {kind} {named!r}: {did_you_mean(named, known)}")
    for column in experiment.columns:
        for named in column.only:
            if named not in rows:
                raise InputError(f"the column {column.name!r} is of the row {named!r} only: {did_you_mean(named, rows)}")
    for line in (*experiment.rows, *experiment.columns, *(one.line for one in experiment.special.values())):
        if line.of is not None and line.of not in rows:
            raise InputError(f"{line.name!r} is read beside the row {line.of!r}: {did_you_mean(line.of, rows)}")


def _line(entry: Any, kind: str) -> Line:
    if isinstance(entry, str):  # a column of a task, or the average
        statistic = AVERAGE if entry == AVERAGE else f"task:{entry}"
        return Line(name=entry, statistic=statistic, published={"column": entry})
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise InputError(f"a {kind} is a name, or a mapping with a name, not {entry!r}")
    return _of(entry, f"{kind} {entry['name']!r}")


def _of(entry: Mapping[str, Any], what: str, *more: str) -> Line:
    fields = [field.name for field in dataclasses.fields(Line)]
    _keys(what, entry, (*fields, *more))
    published = entry.get("published")
    if published is not None:
        if not isinstance(published, Mapping):
            raise InputError(f"{what}: published holds fields of the published number, not {published!r}")
        _keys(f"published of {what}", published, _NUMBER)
    if (statistic := entry.get("statistic")) is not None:
        statistic = str(parsed(str(statistic)))
    for key, known in (("reduce", REDUCTIONS), ("unit", UNITS), ("select", RULES)):
        if entry.get(key) is not None:
            _one_of(f"{key} of {what}", entry[key], known)
    over = tuple(_strings(f"over of {what}", one) for one in entry.get("over", []))
    if bool(over) != (entry.get("reduce") is not None):
        raise InputError(f"{what}: over and reduce go together")
    mini = entry.get("mini")
    return Line(
        name=str(entry.get("name", "")), group=str(entry.get("group", "")), note=str(entry.get("note", "")),
        overrides=_strings(f"overrides of {what}", entry.get("overrides", [])),
        mini=None if mini is None else _strings(f"mini of {what}", mini), statistic=statistic, of=entry.get("of"), over=over,
        reduce=entry.get("reduce"), unit=entry.get("unit"), select=entry.get("select"), only=tuple(entry.get("only", [])),
        published=None if published is None else {key: str(value) for key, value in published.items()},
    )


def _special(entries: Sequence[Any], rows: Sequence[Line], columns: Sequence[Line]) -> Iterator[tuple[tuple[str, str], Special]]:
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if not isinstance(entry, Mapping) or not {"row", "column", "reason"} <= set(entry):
            raise InputError(f"an entry of cells names row, column and reason, not {entry!r}")
        for kind, lines in (("row", rows), ("column", columns)):
            known = [line.name for line in lines]
            if entry[kind] not in known:
                raise InputError(f"cells names the {kind} {entry[kind]!r}: {did_you_mean(str(entry[kind]), known)}")
        at = (entry["row"], entry["column"])
        if at in seen:
            raise InputError(f"the cell of {at[0]!r} and {at[1]!r} has two entries")
        seen.add(at)
        line = _of(entry, f"the cell of {at[0]!r} and {at[1]!r}", "row", "column", "reason", "omit")
        yield at, Special(line=line, omitted=str(entry["reason"]) if entry.get("omit") else None)


def _unanswered(entry: Any) -> tuple[Mapping[str, str], str]:
    if not isinstance(entry, Mapping) or not entry.get("reason") or not isinstance(entry.get("published"), Mapping):
        raise InputError(f"an entry of unanswered has published and reason, not {entry!r}")
    _keys("unanswered", entry["published"], _NUMBER)
    return {key: str(value) for key, value in entry["published"].items()}, str(entry["reason"])


def _seeds(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or any(type(seed) is not int or seed < 0 for seed in value):
        raise InputError(f"seeds is a list of whole numbers, not {value!r}")
    return tuple(dict.fromkeys(value))


def _strings(what: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and "=" in one for one in value):
        raise InputError(f"{what} is a list of KEY=VALUE, not {value!r}")
    return tuple(value)


def _one_of(what: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise InputError(f"{what} is {value!r}: {did_you_mean(str(value), known)}")
    return str(value)


def _keys(what: str, content: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in content:
        if key not in known:
            raise InputError(f"{what} has no {key!r}: {did_you_mean(str(key), known)}")
