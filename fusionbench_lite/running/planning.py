"""`plan=true`: what a run, a table or all tables take on this device, before anything is downloaded or run. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from fusionbench_lite.paths import expanded
from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.arguments import prepared
from fusionbench_lite.planning.experiments import Run
from fusionbench_lite.planning.experiments.runs import decides, notes
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.resources.rates import Rates, rates

ALL = "all"


def main(config: DictConfig, overrides: list[str]) -> None:
    """Print the plan."""
    overrides = [one for one in overrides if one.partition("=")[0] != "plan"]
    if config.experiment == ALL:
        _of_all(config, overrides)
    elif config.experiment is None:
        plan = _plan(overrides)
        _print(plan.method, {plan.method: [plan]}, 1, 0, _rates([plan]))
    elif config.experiment in experiments.names():
        found, missing, cells, refused = _runs(config, config.experiment, overrides)
        _print(config.experiment, {config.experiment: list(missing.values())}, cells, found, _rates(list(missing.values())), refused)
    else:
        from fusionbench_lite.running import experiment

        named = experiment.plans(experiment.read(config.experiment), overrides)
        plans = [plan for row in named.values() for plan in row]
        _print(config.experiment, named, len(named), 0, _rates(plans))


def _plan(overrides: list[str]) -> Plan:
    from fusionbench_lite.running.experiment import plan_of

    return plan_of(overrides)


def _rates(plans: Sequence[Plan]) -> Rates | None:
    if not plans:
        return None
    wanted = plans[0].wanted
    return rates(wanted.device, wanted.precision, wanted.cache)


def _runs(config: DictConfig, name: str, overrides: list[str]) -> tuple[int, dict[Run, Plan], int, dict[str, str]]:
    """Return how many runs of a table have a record, the plans of the others, its cells, and what is refused."""
    from fusionbench_lite.running import table

    experiment = experiments.scaled(experiments.read(name), config.scale)
    specs = experiments.cells(experiment, overrides)
    every = experiments.distinct(specs)
    there = notes(expanded(config.results_dir), every)
    others = prepared([one for one in overrides if not decides(one.lstrip("+").partition("=")[0])])
    refused: dict[str, str] = {}
    missing: dict[Run, Plan] = {}
    for run in every:
        if run not in there:
            table.plan_or_refusal(run, others, missing, refused)
    cells = sum(spec.omitted is None for spec in specs)
    return len(there), missing, cells, refused


def _of_all(config: DictConfig, overrides: list[str]) -> None:
    """Print a line per table, and what all take together: a run that several tables ask for counts once."""
    from fusionbench_lite.resources import work

    together: dict[Run, Plan] = {}
    cells = found = 0
    refused: dict[str, str] = {}
    known: Rates | None = None
    print(f"{'table':<20} {'cells':>6} {'runs':>5} {'missing':>8}  {'PFLOP':>12}  time")
    for name in experiments.names():
        there, missing, count, not_run = _runs(config, name, overrides)
        known = known or _rates(list(missing.values()))
        refused |= not_run
        cells += count
        found += there
        if known is None:
            continue
        own = work.work(list(missing.values()), known.device.partition(":")[0])
        time = work.duration(own.seconds(known))
        print(f"{name:<20} {count:>6,} {there + len(missing):>5,} {len(missing):>8,}  {own.operations / 1e15:>12,.3f}  {time}")
        together |= missing
    _print("all tables", {"all": list(together.values())}, cells, found, known, refused)


def _print(
    name: str, named: dict[str, list[Plan]], cells: int, found: int, known: Rates | None, refused: dict[str, str] | None = None
) -> None:
    from fusionbench_lite.resources import work

    print(f"Plan of {name}")
    if known is None:
        print(f"  cells       {cells:,}\n  runs        {found:,} distinct, all with a record here")
    else:
        for line in work.lines(named, cells, found, known):
            print(f"  {line}")
    for reason, count in _counted(refused or {}).items():
        print(f"  refused     {count} runs: {reason}")


def _counted(refused: dict[str, str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in refused.values():
        counts[reason] = counts.get(reason, 0) + 1
    return counts
