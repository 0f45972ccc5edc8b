"""The lines of results/published as values: numbers, tables, flags."""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.paths import published_dir
from fusionbench_lite.tables.published import schema

ANY = ("*", "")
_WHERE = ("paper", "table", "setting", "method", "column", "variant", "model", "num_tasks")
"""Fields by which a flag finds its numbers; `*` and nothing fit all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """One published number, as printed even where it is wrong. `family` is whose checkpoints it is of, "" where it is of none or
    not known; `selection` the rule by which the paper's code picks an evaluation, "" for what no rule picks."""

    paper: str
    table: str
    setting: str
    model: str
    num_tasks: str
    method: str
    method_as_printed: str
    variant: str
    column: str
    value: float
    unit: str
    metric: str
    family: str
    selection: str
    value_as_printed: str

    @property
    def half_unit(self) -> float:
        """Half a unit of the last printed digit: what rounding may have taken. Percent have a decimal, fractions four, even where
        the print drops a zero."""
        if self.unit == "fraction":
            return 0.5e-4
        if millions := re.fullmatch(r"[\d,]*\.?(\d*)([MB])", self.value_as_printed):
            return 0.5 * {"M": 1e6, "B": 1e9}[millions[2]] * 10.0 ** -len(millions[1])
        decimals = len(repr(self.value).partition(".")[2]) if not self.value.is_integer() else 0
        return 0.5 * 10.0 ** -max(decimals, self.unit == "percent")

    @property
    def where(self) -> str:
        """Where it stands, for sentences."""
        return f"{self.paper}/{self.table}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """What the audit says of one number or of several (`*` and nothing fit all). `likely` is the value that is likely right, None
    where none is or where it is that of another paper; `origin` tells flags that came with the numbers (given) from those that
    `tables audit` found (found), `found_by` how."""

    paper: str
    table: str
    setting: str
    method: str
    column: str
    kind: str
    printed: str
    recomputed_or_other: str
    note: str
    variant: str
    model: str
    num_tasks: str
    severity: str
    other_source: str
    origin: str
    found_by: str

    @property
    def likely(self) -> float | None:
        """The value that is likely right."""
        if self.kind == "cross_paper_disagreement" or self.column == "*" or self.method == "*":
            return None
        try:
            value = float(self.recomputed_or_other)
        except ValueError:
            return None
        return value if math.isfinite(value) and value != _float(self.printed) else None

    def fits(self, number: Number) -> bool:
        """Say whether it is about this number."""
        return all(getattr(self, field) in (*ANY, getattr(number, field)) for field in _WHERE) and self._same_value(number)

    def _same_value(self, number: Number) -> bool:
        """A flag of one printed value in a group of cells is about those that print it."""
        printed = _float(self.printed)
        return printed is None or self.kind in ("mislabelled",) or self.column in ANY or printed == number.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table of a paper; `numbers` is how many it has, `reproduce` what it takes to reproduce it."""

    paper: str
    table: str
    title: str
    setting: str
    models: str
    tasks: str
    methods_count: int
    reproduce: str
    numbers: int

    @property
    def name(self) -> str:
        """Its name among the experiments."""
        return f"{self.paper}/{self.table}"


@functools.cache
def _content(root: Path) -> tuple[dict[str, tuple[Number, ...]], tuple[PublishedTable, ...], tuple[Flag, ...]]:
    lines = {name: read_lines(root / name, columns) for name, columns in schema.COLUMNS.items()}
    schema.check(root, lines)
    every: dict[str, list[Number]] = {}
    for line in lines["results.csv"]:
        number = Number(**{**line, "value": float(line["value"])})  # type: ignore[arg-type]
        every.setdefault(number.where, []).append(number)
    counts = ("methods_count", "numbers")
    tables = tuple(
        PublishedTable(**{key: int(value) if key in counts else value for key, value in line.items()})  # type: ignore[arg-type]
        for line in lines["tables.csv"]
    )
    return {name: tuple(group) for name, group in every.items()}, tables, tuple(Flag(**line) for line in lines["flags.csv"])


def read_lines(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the lines of a file of these columns."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if tuple(reader.fieldnames or ()) != columns:
        raise InputError(f"{path}, line 1: its columns are {','.join(reader.fieldnames or ())}, not {','.join(columns)}")
    for number, line in enumerate(lines, 2):
        if None in line or None in line.values():
            raise InputError(f"{path}, line {number}: it has not {len(columns)} cells")
    return lines


def numbers(paper: str, table: str) -> tuple[Number, ...]:
    """Return the numbers of a table in the order of print; raises InputError with the nearest table."""
    found, _, _ = _content(published_dir())
    name = f"{paper}/{table}"
    if name not in found:
        raise InputError(f"no published table {name!r}: {did_you_mean(name, found)}")
    return found[name]


def tables() -> tuple[PublishedTable, ...]:
    """Return the published tables, paper by paper."""
    return _content(published_dir())[1]


def flags() -> tuple[Flag, ...]:
    """Return all flags of the audit."""
    return _content(published_dir())[2]


@functools.cache
def _by_table(root: Path) -> Mapping[str, tuple[Flag, ...]]:
    grouped: dict[str, list[Flag]] = {}
    for flag in _content(root)[2]:
        grouped.setdefault(f"{flag.paper}/{flag.table}", []).append(flag)
    return {name: tuple(group) for name, group in grouped.items()}


def flags_of(number: Number) -> tuple[Flag, ...]:
    """Return what the audit says of a number."""
    return tuple(flag for flag in _by_table(published_dir()).get(number.where, ()) if flag.fits(number))


def number_of(flag: Flag) -> tuple[Number, ...]:
    """Return the numbers that a flag is about."""
    return tuple(number for number in numbers(flag.paper, flag.table) if flag.fits(number))


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
