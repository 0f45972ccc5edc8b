"""Seconds and peak memory of one adaptation step: `python -m benchmarks.adaptation_step --help`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import command, report
from benchmarks.measure import Job, measure
from benchmarks.problem import SIZES

PLAN = (
    ("adamerging", "plain", 0),
    ("adamerging", "engine", 0),
    ("adamerging", "autograd", 0),
    ("adarank_ta", "engine", 0),
    ("adarank_cart", "engine", 0),
    ("adarank_tsvm", "engine", 0),
    ("adarank_cart", "autograd", 0),
)
CHUNKED = {"vit_mini": ("adarank_cart", "engine", 32)}
"""Where activations outweigh weights, peak memory is bought by smaller passes: measured once more."""


def main(arguments: list[str] | None = None) -> None:
    """Measure what was asked for and print it."""
    command.main("python -m benchmarks.adaptation_step", __doc__, [sys.modules[__name__]], arguments)  # type: ignore[list-item]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this part has."""
    parser.add_argument("--model", choices=[*SIZES, "all"], default="all", help="whose adaptation steps are measured")
    parser.add_argument("--device", default="cpu", help="of adaptation steps: cpu or cuda (default: %(default)s)")


def run(given: argparse.Namespace, say: Callable[[str], None]) -> command.Outcome | None:
    """Measure the steps of the models asked for; none where a single merging method was asked for."""
    if getattr(given, "only", None):
        return None
    models = list(SIZES) if given.model == "all" else [given.model]
    jobs = [
        Job(
            model=model, method=method, variant=variant, device=given.device, threads=given.threads, seconds=given.seconds,
            clock=given.clock, chunk=chunk,
        )
        for model in models
        for method, variant, chunk in (*PLAN, *([CHUNKED[model]] if model in CHUNKED else []))
    ]
    results = {}
    for number, job in enumerate(jobs, 1):
        say(f"{number}/{len(jobs)} {job.model} {job.method} {job.variant}")
        results[job] = command.isolated(measure, job)
    machine = command.machine(given.device, given.threads, given.clock)
    return command.Outcome(
        lambda console: report.show(results, machine, console), report.markdown(results, machine), _as_json(results, machine)
    )


def _as_json(results: report.Results, machine: str) -> dict[str, Any]:
    return {
        "machine": machine,
        "measurements": [dataclasses.asdict(job) | dataclasses.asdict(timing) for job, timing in results.items()],
        "goals": report.goals_as_json(report.goals(results)),
    }


if __name__ == "__main__":
    main()
