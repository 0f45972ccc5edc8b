"""A whole table: the rows of an experiment file, run where their records are missing, then written and printed."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fusionbench_lite import registry
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.paths import expanded, experiments_dir
from fusionbench_lite.planning import given, mistakes
from fusionbench_lite.planning import plan as planning
from fusionbench_lite.planning.arguments import prepared
from fusionbench_lite.planning.composing import composed_for
from fusionbench_lite.planning.experiments.runs import notes, run_of, write_note
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.running.tracking import Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment file: `rows` maps each row's name to its overrides, `defaults` are overrides of every row.

    In the file a row may be the name of another experiment, whose rows stand there.
    """

    name: str
    title: str
    question: str
    seeds: tuple[int, ...]
    defaults: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]


def read(name: str) -> Experiment:
    """Return the experiment of this name, such as mini/demo; raises InputError with the nearest one."""
    root = experiments_dir()
    paths = {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}
    if name not in paths:
        raise InputError(f"unknown experiment {name!r}: {did_you_mean(name, paths)}")
    content = yaml.safe_load(paths[name].read_text(encoding="utf-8"))
    rows: dict[str, tuple[str, ...]] = {}
    for row in content["rows"]:
        rows |= read(row).rows if isinstance(row, str) else {row["name"]: tuple(row["overrides"])}
    return Experiment(
        name=name, title=content["title"], question=content.get("question", ""), seeds=tuple(content.get("seeds", [0])),
        defaults=tuple(content.get("defaults", [])), rows=rows,
    )


def plans(experiment: Experiment, overrides: list[str]) -> dict[str, list[Plan]]:
    """Return the runs of every row, one per seed, all checked; `steps` applies to the rows that adapt."""
    return {name: [plan_of(line) for line in row] for name, row in lines(experiment, overrides).items()}


def lines(experiment: Experiment, overrides: list[str]) -> dict[str, list[list[str]]]:
    """Return the overrides of every row's runs, one per seed; those of the command line win over the file's.

    `seed` on the command line replaces the file's seeds.
    """
    keys = given.keys(overrides)
    others = [override for override, key in zip(overrides, keys, strict=True) if key not in ("experiment", "run")]
    seeds = [[]] if "seed" in keys else [[f"seed={seed}"] for seed in experiment.seeds]
    return {
        name: [[*experiment.defaults, *row, *seed, *others] for seed in seeds] for name, row in experiment.rows.items()
    }


def plan_of(overrides: list[str]) -> Plan:
    """Return the checked plan of overrides; `steps` is left to runs that adapt. Raises InputError in one line."""
    overrides = prepared(overrides)  # those of the file; those of the command line are already
    try:
        config = composed_for(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise mistakes.explain(error, overrides) from None
    registered = config.method.id in registry.names()
    if config.steps is not None and registered and not registry.get(config.method.id).adaptive:
        config.steps = None
    return planning.resolve(config, overrides)


def asked_for(config: DictConfig) -> Experiment:
    """Return the experiment that a configuration names. Raises InputError for a scale, which only published tables have."""
    experiment = read(config.experiment)
    if config.scale != "published":
        raise InputError(f"experiment {experiment.name} runs on embedded suites as it is: leave scale={config.scale} out")
    return experiment


def main(config: DictConfig, overrides: list[str]) -> None:
    """Run an experiment, write its table as CSV, LaTeX, Markdown and PNG, and print it."""
    experiment = asked_for(config)
    resolved = plans(experiment, overrides)
    from rich.console import Console

    from fusionbench_lite.base.processes import is_first
    from fusionbench_lite.running.loading import say_if_long

    console = Console(markup=False, emoji=False)  # a path in brackets is no style
    say_if_long([plan for row in resolved.values() for plan in row], f"experiment {experiment.name}")
    keys = _all_keys(experiment.name, resolved, lines(experiment, overrides), console)
    if is_first():
        _write(experiment, config, resolved, keys, console)


def finish(config: DictConfig, overrides: list[str]) -> None:
    """Write the table of an experiment whose runs left notes and records, and print it; torch is not imported."""
    from rich.console import Console

    experiment = asked_for(config)
    of_rows = {name: [run_of(line) for line in row] for name, row in lines(experiment, overrides).items()}
    there = notes(expanded(config.results_dir), [run for row in of_rows.values() for run in row])
    keys = {name: [there[run].key for run in row if run in there] for name, row in of_rows.items()}
    _write(experiment, config, plans(experiment, overrides), keys, Console(markup=False, emoji=False))


def _write(
    experiment: Experiment, config: DictConfig, resolved: dict[str, list[Plan]], keys: dict[str, list[str]], console: Any
) -> None:
    from fusionbench_lite.tables import frame, output, rows, terminal

    results_dir = expanded(config.results_dir)
    manifest = rows.Rows(
        experiment.name, experiment.title,
        tuple(rows.Row(name, resolved[name][0].method, tuple(keys[name])) for name in resolved), experiment.question,
    )
    with rows.held(results_dir, experiment.name):
        rows.write_rows(results_dir, manifest)
        table = frame.build(manifest, rows.load_records(results_dir, manifest), config.select.name)
        written = output.write_table(table, rows.table_dir(results_dir, experiment.name))
    terminal.print_table(table, console)
    for path in written.values():
        console.print(f"written {path}", style="dim", highlight=False, soft_wrap=True)


def _all_keys(
    experiment: str, resolved: dict[str, list[Plan]], overrides: dict[str, list[list[str]]], console: Any
) -> dict[str, list[str]]:
    """Run what is missing, leave notes, and return the keys of every row's records.

    Seed by seed, because data and experts of a seed are loaded once for all rows.
    """
    from fusionbench_lite.base.processes import is_first

    keys: dict[str, list[str]] = {name: [] for name in resolved}
    for number in range(max(map(len, resolved.values()))):
        for name, row in resolved.items():
            keys[name].append(_key(Place(experiment=experiment, row=name), row[number], console))
            if keys[name][-1] and is_first():
                write_note(row[number].results_dir, run_of(overrides[name][number]), keys[name][-1])
    return keys


def _key(place: Place, plan: Plan, console: Any) -> str:
    """Run what is missing of a row and return its record's key."""
    from fusionbench_lite.base.processes import is_first
    from fusionbench_lite.base.progress import Progress
    from fusionbench_lite.running import run

    with Progress() as progress:
        record, fresh = run.execute(plan, progress, place)
    if record is None:  # a process beside the first, with other results
        return ""
    if fresh and is_first():
        average = record.data["selections"]["last"]["average"]
        console.print(
            f"{place.row}, seed {plan.seed}: {100 * average:.1f} in {record.data['seconds']['total']:.1f} s",
            style="dim", highlight=False,
        )
    return record.key
