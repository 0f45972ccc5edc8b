"""What the measurements have in common on the command line: options, fresh processes, tables and files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console

from benchmarks.measure import CLOCKS

Given = TypeVar("Given")
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The measurements of one part, for a terminal, for the documentation and for programs."""

    show: Callable[[Console], None]
    markdown: str
    json: dict[str, Any]


class Part(Protocol):
    """A module of measurements."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this part has."""

    def run(self, given: argparse.Namespace, say: Callable[[str], None]) -> Outcome | None:
        """Measure what was asked for, if anything was."""


def main(prog: str, description: str | None, parts: Sequence[Part], arguments: list[str] | None = None) -> None:
    """Parse the options, measure part by part, and print and write what was found."""
    parser = argparse.ArgumentParser(prog, description=description)
    for part in parts:
        part.add_options(parser)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement; two rounds at least")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: own time, for a busy machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every timing")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables for the documentation")
    given = parser.parse_args(arguments)
    errors = Console(stderr=True)
    found = [part.run(given, lambda line: errors.print(line, highlight=False)) for part in parts]
    outcomes = [outcome for outcome in found if outcome is not None]
    console = Console(width=None if Console().is_terminal else 120)
    for outcome in outcomes:
        outcome.show(console)
    if given.markdown:
        given.markdown.write_text("\n".join(outcome.markdown for outcome in outcomes), encoding="utf-8")
    if given.json:
        together: dict[str, Any] = {"machine": outcomes[0].json["machine"], "measurements": [], "goals": []}
        for outcome in outcomes:
            together["measurements"] += outcome.json["measurements"]
            together["goals"] += outcome.json["goals"]
        given.json.write_text(json.dumps(together, indent=1) + "\n", encoding="utf-8")


def isolated(function: Callable[[Given], Found], given: Given) -> Found:
    """Measure in a fresh process, forked from one that has imported torch and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.measure"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, given).result()


def machine(device: str, threads: int, clock: str) -> str:
    """Describe where and how the measurements were taken."""
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
