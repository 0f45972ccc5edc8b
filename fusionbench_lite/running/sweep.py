"""`-m experiment=NAME`: a job per distinct run that has no record, by whatever launcher, then the tables.

A job is the line of the sweep with `run=ID`. Whether it did its work is judged by its note and record alone: neither the exit
status of a job nor what a cluster says of it is proof. What sends the jobs resolves plans and never imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file, expanded
from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.experiments import Run
from fusionbench_lite.planning.experiments.runs import decides, forget, notes, run_of
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.running import experiment, job, sent, table
from fusionbench_lite.running.job import Lost
from fusionbench_lite.running.tracking import Place
from fusionbench_lite.tables import records

log = logging.getLogger(__name__)

SETTLING = 60.0
"""Seconds in which files that another machine wrote come into sight on a shared file system."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sending:
    """How jobs are sent: Hydra's launcher, its configuration `hydra`, and how many at once, None for all."""

    launcher: Any
    hydra: DictConfig
    at_once: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The launcher's own settings."""
        settings: dict[str, Any] = OmegaConf.to_container(self.hydra.launcher, resolve=True)  # type: ignore[assignment]
        return settings


# The runs of an experiment -------------------------------------------------------------------------------------------


def runs(config: DictConfig, overrides: list[str]) -> dict[Run, Callable[[], Plan]]:
    """Return the distinct runs of the experiment that a line names, and what makes the plan of each."""
    if config.experiment not in experiments.names():
        rows = experiment.lines(experiment.asked_for(config), overrides).values()
        lines = [line for of_seed in zip(*rows, strict=True) for line in of_seed]  # what one suite serves, one after another
        return {run_of(line): functools.partial(experiment.plan_of, line) for line in lines}
    others = [one for one in overrides if not decides(one.lstrip("+").partition("=")[0])]
    every = experiments.distinct(experiments.cells(table.experiment_of(config), overrides))
    return {run: functools.partial(table.planned, run, others) for run in every}


def missing_runs(config: DictConfig, every: Iterable[Run]) -> list[Run]:
    """Return the runs that have no record, or one that was made under other presets."""
    results_dir, every = expanded(config.results_dir), list(every)
    there = notes(results_dir, every)
    current = {run for run, note in there.items() if note.current and records.find(results_dir, note.key) is not None}
    return [run for run in every if run not in current]


def finish(config: DictConfig, overrides: list[str]) -> None:
    """Write the table of an experiment and print it, from records alone."""
    if config.experiment in experiments.names():
        from rich.console import Console

        console = Console(markup=False, emoji=False)  # a path in brackets is no style
        table.write(table.experiment_of(config), overrides, expanded(config.results_dir), console)
    else:
        experiment.finish(config, overrides)


def one(config: DictConfig, overrides: list[str]) -> None:
    """Make one run of an experiment, which a sweep sends by its id, and leave its note."""
    from rich.console import Console

    every = runs(config, overrides)
    run = next((run for run in every if run.id == config.run), None)
    if run is None:
        raise InputError(f"experiment {config.experiment} has no run {config.run!r} with these settings: start the sweep again")
    log.info("run %s: %s", run.id, " ".join(run.arguments))
    table.execute(run, every[run](), _place(config, overrides, run), f"run {run.id}", Console(markup=False, emoji=False))


def _place(config: DictConfig, overrides: list[str], run: Run) -> Place:
    if config.experiment in experiments.names():
        return table.tracked_as(table.experiment_of(config), overrides)[run]
    rows = experiment.lines(experiment.asked_for(config), overrides)
    name = next(name for name, row in rows.items() if run in map(run_of, row))
    return Place(experiment=config.experiment, row=name)


# The sweep -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of the sweep: its experiment's runs, those without a record, and those that are refused, with the reason."""

    config: DictConfig
    overrides: list[str]
    every: list[Run]
    missing: list[Run]
    refused: dict[str, str]

    @property
    def jobs(self) -> dict[tuple[str, str], list[str]]:
        """The overrides of a job for each missing run, by where its record will be and its id."""
        where = str(expanded(self.config.results_dir))
        return {(where, run.id): [*self.overrides, f"run={run.id}"] for run in self.missing}


def main(lines: Sequence[list[str]], sending: Sending) -> None:
    """Send the runs that have no record, each once, wait for them, and write the tables whose runs all have one.

    Raises Lost where jobs ended and left none, and InputError where runs were refused.
    """
    read = [_line(one, sending) for line in lines for one in _by_table(line)]
    jobs: dict[tuple[str, str], list[str]] = {}
    for line in read:
        jobs |= {at: overrides for at, overrides in line.jobs.items() if at not in jobs}
    _say(read, len(jobs), sending)
    said, reasons = _send(list(jobs.values()), sending) if jobs else ([], {})
    lost: dict[str, str] = {}
    for line in read:
        if absent := _absent(line, reasons):
            lost |= {f"run={run.id}": " ".join(run.arguments) for run in absent}
        elif not line.refused or line.config.experiment in experiments.names():  # cells may be empty, rows may not
            finish(line.config, line.overrides)
    refused = {arguments: reason for line in read for arguments, reason in line.refused.items()}
    if lost:
        raise Lost(_report(lost, len(jobs), reasons, said, sending, refused))
    if refused:
        raise InputError(f"{len(refused)} runs were refused: {table.by_reason(refused)}")


def _by_table(overrides: list[str]) -> list[list[str]]:
    """Return a line as it is, or one for every published table where it asks for all."""
    asked = f"experiment={experiments.ALL}"
    if asked not in overrides:
        return [overrides]
    return [[f"experiment={name}" if one == asked else one for one in overrides] for name in experiments.names()]


def _line(overrides: list[str], sending: Sending) -> _Line:
    config = compose("config", overrides=overrides)
    if config.experiment is None:
        raise InputError("experiment=null in a sweep of experiments: name one, or leave it out")
    job.check_processes(config, sending.hydra)
    every = runs(config, overrides)
    if config.overwrite:
        forget(expanded(config.results_dir), every)
    missing, refused = [], {}
    for run in missing_runs(config, every):
        try:
            every[run]()
            missing.append(run)
        except InputError as error:
            refused[" ".join(run.arguments)] = str(error)
    return _Line(config=config, overrides=overrides, every=list(every), missing=missing, refused=refused)


def _say(lines: Sequence[_Line], jobs: int, sending: Sending) -> None:
    """Say what is sent, and keep beside the jobs which of them is which run."""
    for line in lines:
        found = len(line.every) - len(line.missing) - len(line.refused)
        counts = [f"{len(line.every)} runs", f"{found} with a record", f"{len(line.missing)} to do"]
        counts += [f"{len(line.refused)} refused"] if line.refused else []
        print(f"{line.config.experiment}: {', '.join(counts)}", flush=True)
    if jobs:
        where = Path(str(sending.hydra.sweep.dir))
        print(f"sending {jobs} jobs; {where / JOBS} says which job is which run", flush=True)
        every = {run.id: run for line in lines for run in line.missing}
        with atomic_file(where / JOBS) as temporary:
            texts = (f"{place}\trun={id}\t{' '.join(run.arguments)}\n" for place, (id, run) in enumerate(every.items()))
            temporary.write_text("".join(texts), encoding="utf-8")


JOBS = "jobs.txt"


def _send(jobs: list[list[str]], sending: Sending) -> tuple[list[str], dict[str, str]]:
    """Have the jobs done. Returns what the launcher raised, and by run=ID why a job failed, "" for one that says it did not."""
    said: list[str] = []
    reasons: dict[str, str] = {}
    size = sending.at_once or len(jobs)
    for start in range(0, len(jobs), size):
        part = jobs[start : start + size]
        try:
            returns = sending.launcher.launch(part, initial_job_idx=start)
        except Exception as error:  # of one job that was lost, while the others go on
            said.append(_first_lines(error))
            sent.wait(sending.settings)
            continue
        for overrides, returned in zip(part, returns, strict=True):
            failed = returned.status.name != "COMPLETED"
            reasons[overrides[-1]] = _first_lines(returned._return_value) if failed else ""
    return said, reasons


def _first_lines(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"


def _absent(line: _Line, reasons: Mapping[str, str]) -> list[Run]:
    """Return the runs of a line that have no record. Those whose jobs say they are done are waited for: files travel."""
    end = time.monotonic() + SETTLING
    absent = missing_runs(line.config, line.missing)
    while any(reasons.get(f"run={run.id}") == "" for run in absent) and time.monotonic() < end:
        time.sleep(2)
        absent = missing_runs(line.config, absent)
    return absent


def _report(
    lost: Mapping[str, str], jobs: int, reasons: Mapping[str, str], said: Sequence[str], sending: Sending,
    refused: Mapping[str, str],
) -> str:
    """Return a text that names the lost runs with their logs, and says how to go on."""
    logs = sent.logs(sending.settings, lost)
    lines = [f"{len(lost)} of {jobs} runs have no record though their jobs ended:"]
    for run, arguments in lost.items():
        lines.append(f"  {run} {arguments}")
        lines += [f"    {text}" for text in (reasons.get(run), f"log: {logs[run]}" if run in logs else None) if text]
    lines += [f"the launcher says: {text}" for text in said]
    lines += [f"refused: {table.by_reason(refused)}"] if refused else []
    return "\n".join([*lines, "the same command sends these runs alone"])
