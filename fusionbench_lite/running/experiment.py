"""A whole table: the rows of an experiment file, run where their records are missing, then written and printed."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml
from hydra import compose
from omegaconf import DictConfig

from fusionbench_lite import registry
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.paths import expanded, experiments_dir
from fusionbench_lite.planning import given
from fusionbench_lite.planning import plan as planning
from fusionbench_lite.planning.arguments import prepared
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
    """Return the runs of every row, one per seed, all checked; overrides of the command line win over the file's.

    `seed` on the command line replaces the file's seeds, and `steps` applies to the rows that adapt.
    """
    keys = given.keys(overrides)
    others = [override for override, key in zip(overrides, keys, strict=True) if key != "experiment"]
    seeds = [[]] if "seed" in keys else [[f"seed={seed}"] for seed in experiment.seeds]
    return {
        name: [plan_of([*experiment.defaults, *row, *seed, *others]) for seed in seeds]
        for name, row in experiment.rows.items()
    }


def plan_of(overrides: list[str]) -> Plan:
    """Return the checked plan of overrides; `steps` is left to runs that adapt."""
    overrides = prepared(overrides)  # those of the file; those of the command line are already
    config = compose("config", overrides=overrides)
    registered = config.method.id in registry.names()
    if config.steps is not None and registered and not registry.get(config.method.id).adaptive:
        config.steps = None
    return planning.resolve(config, overrides)


def main(config: DictConfig, overrides: list[str]) -> None:
    """Run an experiment, write its table as CSV, LaTeX, Markdown and PNG, and print it."""
    experiment = read(config.experiment)
    if config.scale != "published":
        raise InputError(f"experiment {experiment.name} runs on embedded suites as it is: leave scale={config.scale} out")
    resolved = plans(experiment, overrides)
    results_dir = expanded(config.results_dir)
    from rich.console import Console

    from fusionbench_lite.base.processes import is_first
    from fusionbench_lite.tables import frame, output, rows, terminal

    console = Console(markup=False, emoji=False)  # a path in brackets is no style
    keys = _all_keys(experiment.name, resolved, console)
    if not is_first():
        return
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


def _all_keys(experiment: str, resolved: dict[str, list[Plan]], console: Any) -> dict[str, list[str]]:
    """Run what is missing and return the keys of every row's records.

    Seed by seed, because data and experts of a seed are loaded once for all rows.
    """
    keys: dict[str, list[str]] = {name: [] for name in resolved}
    for number in range(max(map(len, resolved.values()))):
        for name, row in resolved.items():
            keys[name].append(_key(Place(experiment=experiment, row=name), row[number], console))
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
