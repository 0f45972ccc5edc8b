"""Seconds, peak memory and results of merging methods against straightforward versions: `python -m benchmarks.merging --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks import command, merging_report
from benchmarks.merging_measure import MergingJob, measure_merging
from benchmarks.merging_problem import CASES, METHODS, VIT_B32
from benchmarks.streaming import METHODS as STREAMED
from benchmarks.streaming import streaming


def main(arguments: list[str] | None = None) -> None:
    """Measure what was asked for and print it."""
    command.main("python -m benchmarks.merging", __doc__, [sys.modules[__name__]], arguments)  # type: ignore[list-item]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this part has."""
    parser.add_argument("--only", choices=[*METHODS, "streaming"], help="measure one merging method, or only files to files")


def run(given: argparse.Namespace, say: Callable[[str], None]) -> command.Outcome:
    """Measure the methods asked for, on the CPU."""
    chosen = [number for number, case in enumerate(CASES) if given.only in (None, case.method)]
    streamed = given.only in (None, "streaming")
    results = {}
    for number, index in enumerate(chosen, 1):
        case = CASES[index]
        say(f"{number}/{len(chosen) + streamed} {case.method}, {case.part}")
        job = MergingJob(case=index, size=VIT_B32, threads=given.threads, seconds=given.seconds, clock=given.clock)
        results[index] = command.isolated(measure_merging, job)
    files = None
    if streamed:
        say(f"{len(chosen) + 1}/{len(chosen) + 1} files to files: {', '.join(STREAMED)}")
        files = streaming(VIT_B32, STREAMED, given.threads, given.clock)
    machine = command.machine("cpu", given.threads, given.clock)
    return merging_report.outcome(results, files, machine)


if __name__ == "__main__":
    main()
