"""The cells of an experiment: the runs that each of them asks for, the statistic, and where its published number is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from fusionbench_lite.errors import InputError
from fusionbench_lite.planning.experiments.files import Experiment, Line, Special
from fusionbench_lite.planning.experiments.runs import Run, run_of
from fusionbench_lite.planning.experiments.statistics import Statistic, parsed

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellSpec:
    """One cell. `runs` are those of every variation, one per seed: most cells have one variation, those with `reduce` several.
    `beside` are the runs of the row that a relative statistic is read beside, in the same places. `published` are the fields
    that find its number among those of the table, None where the file says that it has none."""

    row: str
    column: str
    statistic: Statistic
    runs: tuple[tuple[Run, ...], ...]
    select: str
    beside: tuple[tuple[Run, ...], ...] = ()
    reduce: str | None = None
    unit: str | None = None
    published: Mapping[str, str] | None = None
    omitted: str | None = None
    note: str = ""

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """Every run it needs, once."""
        if not self.statistic.needs_run or self.omitted is not None:
            return ()
        return tuple(dict.fromkeys(run for variation in (*self.runs, *self.beside) for run in variation))


def cells(experiment: Experiment, overrides: Sequence[str] = ()) -> tuple[CellSpec, ...]:
    """Return the cells row by row; overrides of the command line win over the file's, `seed` replaces its seeds."""
    seeds = [override for override in overrides if override.partition("=")[0] == "seed"]
    others = [override for override in overrides if override not in seeds]
    chosen = seeds or [f"seed={seed}" for seed in experiment.seeds]
    select = next((one.partition("=")[2] for one in reversed(overrides) if one.startswith("select=")), None)
    return tuple(
        _cell(experiment, row, column, others, chosen, select) for row in experiment.rows for column in experiment.columns
    )


def distinct(specs: Iterable[CellSpec]) -> tuple[Run, ...]:
    """Return the runs of cells, each once, those of one model, task set and seed beside each other.

    What one suite serves runs one after another, since it is loaded once.
    """
    every = dict.fromkeys(run for spec in specs for run in spec.all_runs)
    places = {run: number for number, run in enumerate(every)}
    groups: dict[tuple[str, ...], int] = {}
    for run in every:
        groups.setdefault(_suite(run), len(groups))
    return tuple(sorted(every, key=lambda run: (groups[_suite(run)], places[run])))


def _suite(run: Run) -> tuple[str, ...]:
    values = run.values
    return tuple(values.get(key, "") for key in ("model", "tasks", "checkpoints", "data.corruption", "seed"))


def _cell(
    experiment: Experiment, row: Line, column: Line, others: Sequence[str], seeds: Sequence[str], select: str | None
) -> CellSpec:
    special = experiment.special.get((row.name, column.name))
    if column.only and row.name not in column.only:
        special = Special(line=Line(name=""), omitted="")
    lines = [column, row, *([special.line] if special else [])]  # a later one wins
    statistic = _last(line.statistic for line in lines)
    if statistic is None:
        raise InputError(f"{experiment.name}: the cell of {row.name!r} and {column.name!r} has no statistic")
    kind, of = parsed(statistic), _last(line.of for line in lines)
    if kind.is_relative and of is None and (special is None or special.omitted is None):
        raise InputError(f"{experiment.name}: {statistic} of {row.name!r} and {column.name!r} is read beside a row: add of: ROW")
    over = _last(line.over or None for line in lines) or ((),)
    published: dict[str, str] = {}
    for line in lines:
        published |= line.published or {}
    return CellSpec(
        row=row.name, column=column.name, statistic=kind,
        runs=_runs(experiment, row, column, special, over, others, seeds),
        beside=_beside(experiment, of, column, over, others, seeds) if kind.is_relative and of is not None else (),
        reduce=_last(line.reduce for line in lines), unit=_last(line.unit for line in lines),
        published=published if experiment.published is not None else None,
        omitted=special.omitted if special else None, note=special.line.note if special else "",
        select=select or _last(line.select for line in lines) or experiment.select,
    )


def _beside(
    experiment: Experiment, of: str, column: Line, over: Sequence[Sequence[str]], others: Sequence[str], seeds: Sequence[str]
) -> tuple[tuple[Run, ...], ...]:
    row = next(line for line in experiment.rows if line.name == of)
    return _runs(experiment, row, column, experiment.special.get((of, column.name)), over, others, seeds)


def _runs(
    experiment: Experiment, row: Line, column: Line, special: Special | None, over: Sequence[Sequence[str]],
    others: Sequence[str], seeds: Sequence[str],
) -> tuple[tuple[Run, ...], ...]:
    own = special.line.overrides if special else ()
    common = [*experiment.defaults, *row.overrides, *column.overrides, *own]
    return tuple(tuple(run_of([*common, *variation, seed, *others]) for seed in seeds) for variation in over)


def _last(values: Iterable[T | None]) -> T | None:
    return next((value for value in reversed(list(values)) if value is not None), None)
