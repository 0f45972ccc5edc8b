"""The published numbers, their flags and their tables, read once and checked against each other."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.paths import published_dir
from fusionbench_lite.tables.published import digests
from fusionbench_lite.tables.published.files import read_lines
from fusionbench_lite.tables.published.lines import KEY, SEVERITIES, Flag, Number, PublishedTable
from fusionbench_lite.tables.published.schema import COLUMNS, Line, check_flag, check_number

_RENAMED = {"recomputed_or_other": "recomputed"}


@dataclasses.dataclass(frozen=True)
class Published:
    """All of it: tables and numbers in the order of the papers, the flags of each table, and of each number by its key."""

    tables: tuple[PublishedTable, ...]
    numbers: dict[str, tuple[Number, ...]]
    flags: dict[str, tuple[Flag, ...]]
    flagged: dict[tuple[str, ...], tuple[Flag, ...]]


def tables() -> tuple[PublishedTable, ...]:
    """Return the published tables, paper by paper."""
    return load().tables


def numbers(paper: str, table: str) -> tuple[Number, ...]:
    """Return the numbers of a table; raises InputError for a name that no table has."""
    return load().numbers[_known(paper, table)]


def flags(paper: str, table: str) -> tuple[Flag, ...]:
    """Return the flags on numbers of a table; raises InputError for a name that no table has."""
    return load().flags[_known(paper, table)]


def flags_of(number: Number) -> tuple[Flag, ...]:
    """Return the flags on a number, the gravest first."""
    return load().flagged.get(number.key, ())


def corrected(number: Number) -> float | None:
    """Return the value that should stand in a number's place, None where no flag says so."""
    return next((flag.likely for flag in flags_of(number) if flag.likely is not None), None)


@functools.cache
def load() -> Published:
    """Return what the package's own files hold."""
    return read(published_dir())


@functools.lru_cache(maxsize=4)
def read(folder: Path) -> Published:
    """Read and check the files of a folder; raises InputError naming file, line, column and reason."""
    of_tables = read_lines(folder / "tables.csv", COLUMNS["tables.csv"])
    of_results = read_lines(folder / "results.csv", COLUMNS["results.csv"])
    of_flags = read_lines(folder / "flags.csv", COLUMNS["flags.csv"])
    described = _tables(of_tables)
    found = _numbers(of_results, described)
    _counted(folder, described, found)
    flagged: dict[tuple[str, ...], list[Flag]] = collections.defaultdict(list)
    flags = _flags(of_flags, described, found, flagged)
    digests.check(folder, {"results.csv": of_results, "flags.csv": of_flags, "tables.csv": of_tables})
    sorted_ones = {key: tuple(sorted(those, key=lambda flag: SEVERITIES.index(flag.severity))) for key, those in flagged.items()}
    return Published(tuple(described.values()), found, flags, sorted_ones)


def _known(paper: str, table: str) -> str:
    name, names = f"{paper}/{table}", load().numbers
    if name not in names:
        raise InputError(f"unknown published table {name!r}: {did_you_mean(name, names)}")
    return name


def _tables(lines: Sequence[Line]) -> dict[str, PublishedTable]:
    described: dict[str, PublishedTable] = {}
    for line in lines:
        for column in ("paper", "table", "title", "setting", "tasks", "reproduce"):
            if not line[column]:
                raise line.refused(column, "empty")
        made = PublishedTable(
            paper=line["paper"], table=line["table"], title=line["title"], settings=tuple(line["setting"].split("; ")),
            models=tuple(line["models"].split("; ")), tasks=line["tasks"], methods=line.whole("methods_count"),
            reproduce=line["reproduce"], numbers=line.whole("numbers"),
        )  # fmt: skip
        if made.name in described:
            raise line.refused("table", f"{made.name} is listed twice")
        described[made.name] = made
    return described


def _table_of(line: Line, described: dict[str, PublishedTable]) -> PublishedTable:
    """Return the table that a line belongs to; raises InputError for one that tables.csv does not list."""
    if (table := described.get(f"{line['paper']}/{line['table']}")) is not None:
        return table
    papers = dict.fromkeys(table.paper for table in described.values())
    paper = line.one_of("paper", papers)
    own = {table.table: table for table in described.values() if table.paper == paper}
    return own[line.one_of("table", own)]


def _numbers(lines: Sequence[Line], described: dict[str, PublishedTable]) -> dict[str, tuple[Number, ...]]:
    found: dict[str, list[Number]] = {name: [] for name in described}
    seen: dict[tuple[str, ...], int] = {}
    for line in lines:
        table = _table_of(line, described)
        line.one_of("setting", table.settings)
        if line["model"]:
            line.one_of("model", table.models)
        value = check_number(line)
        tasks = int(line["num_tasks"]) if line["num_tasks"] else None
        number = Number(**{**line.fields, "value": value, "num_tasks": tasks}, written=line["value"])  # type: ignore[arg-type]
        if number.key in seen:
            raise line.refused("metric", f"line {seen[number.key]} has the same {', '.join(KEY)}: one of the two is wrong")
        seen[number.key] = line.number
        found[table.name].append(number)
    return {name: tuple(those) for name, those in found.items()}


def _counted(folder: Path, described: dict[str, PublishedTable], found: dict[str, tuple[Number, ...]]) -> None:
    """Raise InputError where tables.csv says otherwise than results.csv how many numbers or methods a table has."""
    for place, (name, table) in enumerate(described.items(), 2):
        methods = len({number.method for number in found[name] if number.method != "dataset"})
        for column, said, there in (("numbers", table.numbers, len(found[name])), ("methods_count", table.methods, methods)):
            if said != there:
                reason = f"column {column}: {said} of {name}, but results.csv has {there}: a line was added or removed"
                raise InputError(f"{folder / 'tables.csv'}, line {place}, {reason}")


def _flags(
    lines: Sequence[Line], described: dict[str, PublishedTable], found: dict[str, tuple[Number, ...]],
    flagged: dict[tuple[str, ...], list[Flag]],
) -> dict[str, tuple[Flag, ...]]:  # fmt: skip
    """Return the flags of each table and fill in those of each number."""
    made: dict[str, list[Flag]] = collections.defaultdict(list)
    for line in lines:
        name = _table_of(line, described).name
        likely = check_flag(line)
        own = {_RENAMED.get(name, name): value for name, value in line.fields.items()}
        flag = Flag(**{**own, "likely": likely})  # type: ignore[arg-type]
        concerned = [number for number in found[name] if flag.concerns(number)]
        if not concerned:
            raise line.refused(_misses(flag, found[name]), f"no number of {name} has these fields: the flag points at nothing")
        if len(concerned) == 1 and flag.kind != "mislabelled" and flag.printed != concerned[0].written:
            raise line.refused("printed", f"{flag.printed!r}, but results.csv has {concerned[0].written!r} there")
        made[name].append(flag)
        for number in concerned:
            flagged[number.key].append(flag)
    return {name: tuple(made[name]) for name in described}


def _misses(flag: Flag, there: Sequence[Number]) -> str:
    """Return the first field of a flag that leaves none of a table's numbers."""
    for place, value in flag.conditions:
        there = [number for number in there if number.key[place] == value]
        if not there:
            return KEY[place]
    return KEY[-1]
