"""`plan=true`: what a run, an experiment or all tables take on this device, before anything is downloaded or run. Never imports
torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fusionbench_lite.paths import cache_dir, expanded
from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.arguments import prepared
from fusionbench_lite.planning.experiments import Run
from fusionbench_lite.planning.experiments.runs import decides, notes
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.resources import recorded, work
from fusionbench_lite.resources.hours import duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The cells of an experiment, its runs with a note of a record, the plans of the others, and why runs are refused, all by what
    tells runs apart."""

    cells: int
    noted: frozenset[Any]
    plans: Mapping[Any, Plan]
    refused: Mapping[Any, str]


def main(config: DictConfig, overrides: list[str]) -> None:
    """Print the plan."""
    overrides = [one for one in overrides if one.partition("=")[0] != "plan"]
    name = config.experiment
    names = experiments.names() if name == experiments.ALL else [name]
    tables = {"run" if one is None else one: _table(config, one, overrides) for one in names}
    title = {None: "a run", experiments.ALL: "all tables"}.get(name, name)
    show(tables, cache_dir(config.cache_dir), expanded(config.results_dir), title)


def show(tables: Mapping[str, Table], cache: Path, results_dir: Path, title: str) -> None:
    """Print what tables take: a line each where there are several, then all together."""
    plans = {key: plan for table in tables.values() for key, plan in table.plans.items()}
    there = recorded.settings_there(results_dir)
    hub = _hub(plans)
    known = work.measured(plans.values(), cache)
    if len(tables) > 1:
        print(f"{'table':<20} {'cells':>6} {'runs':>5} {'missing':>8}  {'operations':>14}  time")
    for name, table in tables.items() if len(tables) > 1 else ():
        own = work.work(list(table.plans.values()), known, there)
        time = duration(own.seconds(next(iter(known.values())))) if known else "-"
        said = f"{work.number(own.operations.products):>14}"
        runs = len(table.noted) + len(work.distinct(table.plans.values()))
        print(f"{name:<20} {table.cells:>6,} {runs:>5,} {own.runs - own.bases:>8,}  {said}  {time}")
    total = work.work(list(plans.values()), known, there)
    refused = {key: reason for table in tables.values() for key, reason in table.refused.items()}
    noted = frozenset().union(*(table.noted for table in tables.values()))
    runs, missing = len(noted) + len(work.distinct(plans.values())), total.runs - total.bases
    bases = f" and {total.bases} that adapters sit on" if total.bases else ""
    print(f"Plan of {title}")
    print(f"  cells       {sum(table.cells for table in tables.values()):,}")
    print(f"  runs        {runs:,} distinct, {runs - missing:,} with a record here, {missing:,} to be made{bases}")
    if hub:
        print(f"  hub         {hub}")
    for line in work.lines(total, known) if known else ():
        print(f"  {line}")
    for reason, count in _counted(refused).items():
        print(f"  refused     {count} runs: {reason}")


def _hub(plans: Mapping[Any, Plan]) -> str:
    """Return whether the hub answers that is asked for the sizes of data sets, "" where nothing comes from one."""
    if not any(plan.kind.uses_hub for plan in plans.values()):
        return ""
    from fusionbench_lite.hub.reaching import reached

    return reached()


def _table(config: DictConfig, name: str | None, overrides: list[str]) -> Table:
    """Return what is asked for: one run, the runs of a published table, or those of another experiment."""
    from fusionbench_lite.running import experiment, table

    if name in experiments.names():
        assert name is not None
        specs = experiments.cells(experiments.scaled(experiments.read(name), config.scale), overrides)
        every = experiments.distinct(specs)
        noted = notes(expanded(config.results_dir), every)
        others = prepared([one for one in overrides if not decides(one.lstrip("+").partition("=")[0])])
        refused: dict[str, str] = {}
        missing: dict[Run, Plan] = {}
        for run in every:
            if run not in noted:
                table.plan_or_refusal(run, others, missing, refused)
        cells = sum(spec.omitted is None for spec in specs)
        return Table(cells=cells, noted=frozenset(noted), plans=missing, refused=refused)
    if name is None:
        plans, cells = [experiment.plan_of(overrides)], 1
    else:
        rows = experiment.plans(experiment.read(name), overrides)
        plans, cells = [plan for row in rows.values() for plan in row], len(rows)
    found: dict[Any, Plan] = {recorded.setting_of(plan): plan for plan in plans}
    return Table(cells=cells, noted=frozenset(), plans=found, refused={})


def _counted(refused: Mapping[Any, str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in refused.values():
        counts[reason] = counts.get(reason, 0) + 1
    return counts
