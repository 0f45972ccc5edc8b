"""Seconds and peak memory of one adaptation step: `python -m benchmarks.adaptation_step --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import report
from benchmarks.measure import CLOCKS, Job, Timing, measure
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
    given = _parser().parse_args(arguments)
    models = list(SIZES) if given.model == "all" else [given.model]
    jobs = [
        Job(model, method, variant, given.device, given.threads, given.seconds, given.clock, chunk)
        for model in models
        for method, variant, chunk in (*PLAN, *([CHUNKED[model]] if model in CHUNKED else []))
    ]
    errors = Console(stderr=True)
    results = {}
    for number, job in enumerate(jobs, 1):
        errors.print(f"{number}/{len(jobs)} {job.model} {job.method} {job.variant}", highlight=False)
        results[job] = isolated(job)
    machine = _machine(given.device, given.threads, given.clock)
    report.show(results, machine, Console(width=None if Console().is_terminal else 120))
    if given.markdown:
        given.markdown.write_text(report.markdown(results, machine), encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps(_as_json(results, machine), indent=1) + "\n", encoding="utf-8")


def isolated(job: Job) -> Timing:
    """Measure in a fresh process, forked from one that has imported torch and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.measure"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, job).result()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.adaptation_step", description=__doc__)
    parser.add_argument("--model", choices=[*SIZES, "all"], default="all")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement; two rounds at least")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: own time, for a busy machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every timing")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables for the documentation")
    return parser


def _machine(device: str, threads: int, clock: str) -> str:
    cuda = device != "cpu"
    name = torch.cuda.get_device_name(device) if cuda else f"{os.cpu_count()} cores of an {_processor()}, no GPU"
    versions = f"torch {torch.__version__}; Python {platform.python_version()}"
    return f"{name}; {threads} thread{'s' * (threads != 1)}; {clock} time; {versions}"


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = found[1] if found else platform.processor() or platform.machine()
    return re.sub(r"\((R|TM)\)| Processor| CPU", "", name)


def _as_json(results: report.Results, machine: str) -> dict[str, object]:
    return {
        "machine": machine,
        "measurements": [dataclasses.asdict(job) | dataclasses.asdict(timing) for job, timing in results.items()],
        "goals": [dataclasses.asdict(goal) | {"verdict": goal.verdict} for goal in report.goals(results)],
    }


if __name__ == "__main__":
    main()
