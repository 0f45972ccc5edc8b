"""What the three files of published numbers are made of: one number, one flag of the audit, one table."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping

KEY = ("paper", "table", "setting", "model", "num_tasks", "method", "variant", "column", "metric")
"""The fields that tell one number from every other."""
ANY = "*"
"""What a flag has where its numbers may have anything."""
SEVERITIES = ("high", "medium", "low")
_LARGE = re.compile(r"[\d,]*\.?(\d*)([MB])")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """One published number. `written` is its value with the digits of the paper, `value_as_printed` the paper's own token.

    `num_tasks` is how many models are merged, None where that means nothing. `family` names the checkpoints that it was
    measured on, `selection` the evaluation of an adaptation that the paper's code reports.
    """

    paper: str
    table: str
    setting: str
    model: str
    num_tasks: int | None
    method: str
    method_as_printed: str
    variant: str
    column: str
    metric: str
    value: float
    written: str
    unit: str
    value_as_printed: str
    family: str
    selection: str

    @functools.cached_property
    def key(self) -> tuple[str, ...]:
        """The fields of `KEY` as text."""
        tasks = "" if self.num_tasks is None else str(self.num_tasks)
        return (self.paper, self.table, self.setting, self.model, tasks, self.method, self.variant, self.column, self.metric)

    @property
    def decimals(self) -> int:
        """How many decimals the paper gives; a fraction always has four, of which some rows drop a final zero."""
        return 4 if self.unit == "fraction" else len(self.written.partition(".")[2])

    @property
    def half_unit(self) -> float:
        """Half a unit of the last printed digit; whole percentages (100) stand among numbers of one decimal, counts as 113.45M."""
        if large := _LARGE.fullmatch(self.value_as_printed):
            return float(0.5 * {"M": 1e6, "B": 1e9}[large[2]] * 10.0 ** -len(large[1]))
        return float(0.5 * 10.0 ** -(max(self.decimals, 1) if self.unit == "percent" else self.decimals))

    def matches(self, fields: Mapping[str, object]) -> bool:
        """Say whether the number has these values of its fields, as experiment files write them."""
        return all(("" if (own := getattr(self, name)) is None else str(own)) == str(value) for name, value in fields.items())

    def __str__(self) -> str:
        """Return the place of the number for people."""
        tasks = "" if self.num_tasks is None else f"{self.num_tasks} tasks"
        row = ", ".join(part for part in (self.method, self.variant, self.model, tasks) if part)
        return f"{self.paper}/{self.table}, {row}: {self.column}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """A remark of the audit on the numbers that have its fields; ANY stands for every value.

    `printed` is what the paper has, `recomputed` the mean, the value elsewhere or the label that it was compared with, `likely` the
    number that should stand there, None where nothing says so. `origin`: "given" flags came with the numbers, "found" ones were
    added by the checks of `tables.audit`; `how` is the check that finds it, "reading" where only the paper's text does.
    """

    paper: str
    table: str
    setting: str
    model: str
    num_tasks: str
    method: str
    variant: str
    column: str
    metric: str
    kind: str
    severity: str
    printed: str
    recomputed: str
    likely: float | None
    other_source: str
    origin: str
    how: str
    note: str

    def concerns(self, number: Number) -> bool:
        """Say whether the flag is on a number."""
        key = number.key
        return all(key[place] == value for place, value in self.conditions)

    @functools.cached_property
    def conditions(self) -> tuple[tuple[int, str], ...]:
        """Places in `KEY` and what its numbers have there, those first that tell most numbers apart."""
        fields = [(place, getattr(self, name)) for place, name in enumerate(KEY)]
        return tuple((place, value) for place, value in reversed(fields) if value != ANY)

    @property
    def general(self) -> bool:
        """Whether it is on a table as a whole, of which every number has it."""
        return self.method == self.column == ANY

    @property
    def fields(self) -> tuple[str, ...]:
        """What its numbers have in the fields of `KEY`."""
        return tuple(getattr(self, name) for name in KEY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """One table of a paper: what it shows, on what, and what it takes to reproduce it. `numbers` counts its numbers."""

    paper: str
    table: str
    title: str
    settings: tuple[str, ...]
    models: tuple[str, ...]
    tasks: str
    methods: int
    reproduce: str
    numbers: int

    @property
    def name(self) -> str:
        """The table's name, such as doge/table_6."""
        return f"{self.paper}/{self.table}"
