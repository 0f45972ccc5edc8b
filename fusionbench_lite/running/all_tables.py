"""`experiment=all`: the runs of all published tables, or of all their twins, each made once, then every table.

Runs are put in groups that one suite serves, and a process works on a group that no other process holds: two that are started with
one line share the work. A group that was held is looked at once more at the end, so that the last process finds every run made
and writes the tables. What has a record is not loaded. Seeds come one after another, in each the cheapest groups first, so that
all tables have something to show early.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import cache_dir, expanded
from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.experiments import Experiment, Run
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.resources import work
from fusionbench_lite.resources.hours import time_of
from fusionbench_lite.running import sweep, table
from fusionbench_lite.running.tracking import Place

PASSING = 5.0
"""Seconds within which a process that only looks whether a group's runs are made lets go of it."""


@dataclasses.dataclass(kw_only=True)
class _Work:
    """The missing runs of all tables, the first place that asks for each, and why others are refused; `runs` counts all."""

    plans: dict[Run, Plan]
    places: dict[Run, Place]
    refused: dict[str, str]
    runs: int


def main(config: DictConfig, overrides: list[str]) -> None:
    """Run what is missing of all tables and write them. Raises InputError at the end for what was refused."""
    from rich.console import Console

    from fusionbench_lite.running.loading import say_if_long

    console = Console(markup=False, emoji=False)  # a path in brackets is no style
    tables = [experiments.scaled(experiments.read(name), config.scale) for name in experiments.names()]
    todo = _missing(tables, config, overrides)
    say_if_long(list(todo.plans.values()), "experiment all")
    found = todo.runs - len(todo.plans) - len(todo.refused)
    console.print(f"{len(tables)} tables, {todo.runs} runs: {found} have a record, {len(todo.plans)} to do", highlight=False)
    elsewhere = _make(todo, config, console)
    if elsewhere:
        console.print(f"{elsewhere} runs are left to another process, which writes the tables", highlight=False)
    else:
        _write(tables, config, overrides, console)
    if todo.refused:
        raise InputError(f"{len(todo.refused)} of {todo.runs} runs of all tables were refused: {table.by_reason(todo.refused)}")


def _missing(tables: Sequence[Experiment], config: DictConfig, overrides: list[str]) -> _Work:
    """Return the runs without a record, planned, each under the first table that asks for it."""
    places: dict[Run, Place] = {}
    for one in tables:
        places = table.tracked_as(one, overrides) | places
    every = list(places) if config.overwrite else sweep.missing_runs(config, places)
    others = table.undeciding(overrides)
    plans: dict[Run, Plan] = {}
    refused: dict[str, str] = {}
    for run in every:
        table.plan_or_refusal(run, others, plans, refused)
    return _Work(plans=plans, places=places, refused=refused, runs=len(places))


def _make(todo: _Work, config: DictConfig, console: Any) -> int:
    """Make the runs, group by group, and return how many other processes hold. What is refused on the way is put to the rest."""
    results_dir = expanded(config.results_dir)
    groups, made = _groups(todo.plans, cache_dir(config.cache_dir)), 0
    for wait in (0.0, PASSING):
        held = []
        for group in groups:
            with _taken(results_dir, todo.plans[group[0]], wait) as free:
                if free:
                    _make_group(todo, group, made, config, console)
                    made += len(group)
                else:
                    held.append(group)
        groups = held
    return sum(map(len, groups))


def _make_group(todo: _Work, group: list[Run], made: int, config: DictConfig, console: Any) -> None:
    others = set(group) - set(group if config.overwrite else sweep.missing_runs(config, group))
    for number, run in enumerate(group, made + 1):
        if run in others:  # another process made it since
            continue
        try:
            table.execute(run, todo.plans[run], todo.places[run], f"{number} of {len(todo.plans)}", console)
        except InputError as error:
            todo.refused[" ".join(run.arguments)] = str(error)


def _groups(plans: Mapping[Run, Plan], cache: Path) -> list[list[Run]]:
    """Return the runs that one suite serves, cheapest first, and the groups by seed and then by what they take."""
    known = work.measured(plans.values(), cache)
    seconds = {run: time_of([plan], known)[1].total for run, plan in plans.items()}
    groups: dict[Any, list[Run]] = {}
    for run, plan in plans.items():
        groups.setdefault(plan.wanted, []).append(run)
    ordered = sorted(groups.values(), key=lambda group: (plans[group[0]].seed, sum(seconds[run] for run in group)))
    return [sorted(group, key=seconds.__getitem__) for group in ordered]


@contextlib.contextmanager
def _taken(results_dir: Path, plan: Plan, wait: float) -> Iterator[bool]:
    """Hold the group of a plan for the length of the block and say so, or say that another process held it for `wait` seconds."""
    import filelock

    name = hashlib.sha256(repr(plan.wanted).encode()).hexdigest()[:16]
    folder = results_dir / "partial"
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"group-{name}.lock")
    try:
        lock.acquire(timeout=wait)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _write(tables: Sequence[Experiment], config: DictConfig, overrides: list[str], console: Any) -> None:
    """Write every table in all formats, a line of each on the terminal."""
    results_dir = expanded(config.results_dir)
    for one in tables:
        grid, written = table.written(one, overrides, results_dir)
        cells = [cell for cell in grid.cells.values() if cell.omitted is None]
        there = sum(cell.ours is not None for cell in cells)
        where = written["markdown"].parent
        said = f"{one.full_name}: {there} of {len(cells)} cells, written {where}"
        console.print(said, style="dim", highlight=False, soft_wrap=True)
