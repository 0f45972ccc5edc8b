"""A published table: the runs that its cells ask for, run where their records are missing, then the grid written and printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import expanded
from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.arguments import prepared
from fusionbench_lite.planning.experiments import Experiment, Run
from fusionbench_lite.planning.experiments.runs import decides, write_note
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.running.tracking import Place
from fusionbench_lite.tables.cells.grid import Grid

REASONS = 3
"""Reasons of refusals that one line names."""


def experiment_of(config: DictConfig) -> Experiment:
    """Return the experiment that a configuration names, at its scale."""
    return experiments.scaled(experiments.read(config.experiment), config.scale)


def runs(experiment: Experiment, overrides: list[str], refused: dict[str, str] | None = None) -> dict[Run, Plan]:
    """Return the distinct runs of an experiment and their plans, all checked; overrides of the command line win.

    With `refused`, runs that cannot be are named there, with the reason, and left out; without, the first raises InputError.
    """
    others = undeciding(overrides)
    found: dict[Run, Plan] = {}
    for run in experiments.distinct(experiments.cells(experiment, overrides)):
        plan_or_refusal(run, others, found, refused)
    return found


def undeciding(overrides: list[str]) -> list[str]:
    """Return the overrides of a command line that say where and on what runs are made; the others are part of the runs."""
    return [one for one in overrides if not decides(one.lstrip("+").partition("=")[0])]


def plan_or_refusal(run: Run, others: list[str], found: dict[Run, Plan], refused: dict[str, str] | None) -> None:
    """Put the plan of a run into `found`, or the reason why it cannot be into `refused`; raises InputError without."""
    try:
        found[run] = planned(run, others)
    except InputError as error:
        if refused is None:
            raise
        refused[" ".join(run.arguments)] = str(error)


def planned(run: Run, others: list[str]) -> Plan:
    """Return the plan of a run, where and on what the command line says."""
    from fusionbench_lite.running.experiment import plan_of

    kept = [one for one in others if one.partition("=")[0] not in ("experiment", "plan", "run")]
    return plan_of([*prepared(run.arguments), *kept])


def main(config: DictConfig, overrides: list[str]) -> None:
    """Run what is missing of a table, write it in every format, and print it.

    A run that is refused leaves its cells empty; the others go on, and what was refused is raised at the end.
    """
    from rich.console import Console

    from fusionbench_lite.base.processes import is_first
    from fusionbench_lite.running.loading import say_if_long

    experiment = experiment_of(config)
    results_dir = expanded(config.results_dir)
    console = Console(markup=False, emoji=False)  # a path in brackets is no style
    refused: dict[str, str] = {}
    resolved, places = runs(experiment, overrides, refused), tracked_as(experiment, overrides)
    say_if_long(list(resolved.values()), f"experiment {experiment.name}")
    for number, (run, plan) in enumerate(resolved.items(), 1):
        try:
            execute(run, plan, places[run], f"{number} of {len(resolved)}", console)
        except InputError as error:
            refused[" ".join(run.arguments)] = str(error)
    if is_first():
        write(experiment, overrides, results_dir, console)
    if refused:
        raise InputError(f"{len(refused)} of {len(places)} runs of {experiment.name} were refused: {by_reason(refused)}")


def by_reason(refused: Mapping[str, str]) -> str:
    """Return why runs were refused in one line: each reason once, how many runs have it, and the first of them."""
    runs: dict[str, list[str]] = {}
    for arguments, reason in refused.items():
        runs.setdefault(reason, []).append(arguments)
    said = [
        f"{reason} ({len(those)} runs, the first of them {those[0]})" if len(those) > 1 else f"{reason} ({those[0]})"
        for reason, those in runs.items()
    ]
    more = f"; and for {len(said) - REASONS} other reasons" if len(said) > REASONS else ""
    return "; ".join(said[:REASONS]) + more


def tracked_as(experiment: Experiment, overrides: list[str]) -> dict[Run, Place]:
    """Return the place of every run: the first row that asks for it and, where that is one of its columns or one group of them,
    the column."""
    asked: dict[Run, dict[str, list[str]]] = {}
    for cell in experiments.cells(experiment, overrides):
        for run in cell.all_runs:
            asked.setdefault(run, {}).setdefault(cell.row, []).append(cell.column)
    groups = {line.name: line.group for line in experiment.columns}
    places = {}
    for run, rows in asked.items():
        row, columns = next(iter(rows.items()))
        common = {groups[column] for column in columns}
        column = columns[0] if len(columns) == 1 else common.pop() if len(common) == 1 else ""
        places[run] = Place(experiment=experiment.full_name, row=row, column=column)
    return places


def write(experiment: Experiment, overrides: list[str], results_dir: Path, console: Any) -> None:
    """Write the grid of an experiment in every format and print it."""
    from fusionbench_lite.tables.cells.formats.text import print_grid

    table, paths = written(experiment, overrides, results_dir)
    print_grid(table, console)
    for path in paths.values():
        console.print(f"written {path}", style="dim", highlight=False, soft_wrap=True)


def written(experiment: Experiment, overrides: list[str], results_dir: Path) -> tuple[Grid, dict[str, Path]]:
    """Write the grid of an experiment in every format; returns it and the files by format."""
    from fusionbench_lite.tables.cells.build import grid
    from fusionbench_lite.tables.cells.output import write_grid
    from fusionbench_lite.tables.rows import held, table_dir

    with held(results_dir, experiment.full_name):
        table = grid(experiment, results_dir, overrides)
        return table, write_grid(table, table_dir(results_dir, experiment.full_name))


def execute(run: Run, plan: Plan, place: Place, count: str, console: Any) -> None:
    """Run one plan, or find its record, and leave the note that leads to it."""
    from fusionbench_lite.base.processes import is_first
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.running import run as running

    with Progress() as progress:
        record, fresh = running.execute(plan, progress, place)
    if record is None or not is_first():
        return
    write_note(plan.results_dir, run, record.key)
    if fresh:
        average, seconds = record.data["selections"]["last"]["average"], record.data["seconds"]["total"]
        text = "" if average is None else f" {100 * average:.1f}"
        console.print(
            f"{count}: {plan.method}, {plan.model}, tasks={plan.task_set}, seed {plan.seed}:{text} in {seconds:.1f} s",
            style="dim", highlight=False,
        )
