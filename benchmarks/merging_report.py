"""Goals of the merging measurements, and their tables for a terminal and for the documentation."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from benchmarks.command import Outcome
from benchmarks.merging_measure import STEPS, Measured
from benchmarks.merging_problem import CASES, Case
from benchmarks.report import MIB, Goal, goals_as_json, goals_table, markdown_table, seconds
from benchmarks.streaming import LIMIT, Streamed

Results = Mapping[int, Measured]
"""Measurements by the number of their case."""
Files = Mapping[str, Streamed] | str | None
COLUMNS = (
    "method", "part of ViT-B/32", "time [s]", "reference [s]", "times faster", "peak [MiB]", "reference's [MiB]", "error",
    "reference's error",
)
STREAM_COLUMNS = ("method", "wall [s]", "cpu [s]", "x reading", "peak [MiB]", "before [MiB]", "files [MiB]")
GOAL_COLUMNS = ("method", "goal", "measured", "at most", "verdict")
EXPLANATION = (
    "Eight random experts, held in memory, of which every method sees the part named. reference: the straightforward version "
    "in benchmarks/merging_reference.py, run in turn with the method; ratios are medians over the rounds. peak: the most "
    "beyond the inputs and the result. error: the largest deviation from the reference in units of the largest change of "
    "the tensor; for tsv_m, cart and iso_c from the reference in float64, on out_proj, with the float32 reference's own "
    f"deviation beside. doge_ta: set-up and 20 steps are timed, and {STEPS} steps are extrapolated from them; its peak is that "
    "of the steps alone, beyond the task vectors of the matrix, and one state is Δ, Adam's two moments and the gradient."
)
STREAMED = (
    "Files to files: pretrained weights and eight experts, the whole tower, from safetensors to safetensors. peak: resident "
    "memory of the whole process, interpreter and libraries included; before: without the merge. x reading: of summing up "
    "every tensor of the files once."
)


def outcome(results: Results, files: Files, machine: str) -> Outcome:
    """Return the tables and goals of these results."""
    return Outcome(
        lambda console: show(results, files, machine, console), markdown(results, files, machine),
        {
            "machine": machine,
            "measurements": [
                *({"method": CASES[n].method, "part": CASES[n].part, **dataclasses.asdict(found)} for n, found in results.items()),
                *({"method": f"{name}, files to files", **dataclasses.asdict(found)} for name, found in _streamed(files).items()),
            ],
            "goals": goals_as_json(goals(results, files)),
        },
    )


def goals(results: Results, files: Files) -> list[Goal]:
    """Return every goal that these results decide."""
    found = []
    for number, measured in results.items():
        found += _goals(CASES[number], measured)
    for name, streamed in _streamed(files).items():
        found.append(Goal(f"{name}, files", "peak resident memory [GiB]", streamed.peak / 2**30, LIMIT / 2**30))
    return found


def _goals(case: Case, measured: Measured) -> list[Goal]:
    label = f"{case.method}, {case.part}" if case.steps else case.method
    found = []
    if case.reading is not None:
        found.append(Goal(label, "time, of reading the inputs once", ratio(measured, "reading"), case.reading))
    if case.slower is not None:
        found.append(Goal(label, "time, of the reference's", ratio(measured, "reference"), 1 / case.slower))
    if case.memory is not None:
        text, most = ("one matrix's state", measured.unit) if case.steps else ("the reference's", measured.peaks["reference"])
        found.append(Goal(label, f"peak memory, of {text}", max(measured.peaks["fast"], 1) / max(most, 1), case.memory))
    found.append(Goal(label, "error", max(measured.error, 1e-12), case.error))
    return found


def ratio(measured: Measured, yardstick: str) -> float:
    """Return the median over rounds of the method's time in units of another version's."""
    pairs = zip(measured.times["fast"], measured.times[yardstick], strict=True)
    return statistics.median(fast / other for fast, other in pairs)


def rows(results: Results) -> list[tuple[str, ...]]:
    """Return one row of text per case, in the columns of COLUMNS."""
    table = []
    for number, found in results.items():
        times = [seconds(statistics.median(found.times[name])) for name in ("fast", "reference")]
        peaks = [f"{found.peaks[name] / MIB:.1f}" for name in ("fast", "reference")]
        own = "" if found.own_error is None else f"{found.own_error:.1e}"
        faster = f"{1 / ratio(found, 'reference'):.2f}"
        table.append((CASES[number].method, CASES[number].part, *times, faster, *peaks, f"{found.error:.1e}", own))
    return table


def notes(results: Results) -> list[str]:
    """Return a line about each thing that was measured as information."""
    lines = []
    for number, found in results.items():
        case = CASES[number]
        for name in case.information:
            middle = seconds(statistics.median(found.times[name]))
            lines.append(f"{case.method}: {name} takes {middle} s; the method takes {ratio(found, name):.2f} times that.")
        if found.step:
            parts = ", ".join(
                f"{name} {seconds(statistics.median(found.setup[name]))} s, {1e3 * statistics.median(found.step[name]):.1f} ms, "
                f"{found.whole[name] / MIB:.0f} MiB" for name in found.step
            )
            lines.append(
                f"{case.method}, {case.part}: set-up with the first step, every further step, and the whole merge's peak, its "
                f"copies of the task vectors included: {parts}."
            )
    return [*lines, steadiness(results)] if results else lines


def steadiness(results: Results) -> str:
    """Return a sentence about how far equal runs differed."""
    spread = max(max(times) / min(times) for found in results.values() for times in found.times.values())
    busy = ": the machine was busy, and times are indications only" if spread > 1.5 else ""
    return f"Equal runs of one measurement differed by up to {spread:.1f} times{busy}."


def stream_rows(files: Files) -> list[tuple[str, ...]]:
    """Return one row of text per method that ran from files to files."""
    return [
        (
            name, seconds(found.seconds), seconds(found.cpu), f"{found.on_clock / statistics.mean(found.reading):.2f}",
            *(f"{size / MIB:.0f}" for size in (found.peak, found.resident, found.inputs)),
        )
        for name, found in _streamed(files).items()
    ]


def show(results: Results, files: Files, machine: str, console: Console) -> None:
    """Print the tables of all cases and the goals."""
    console.print(machine)
    for title, columns, body in _tables(results, files):
        table = Table(*columns, title=title)
        for row in body:
            table.add_row(*row)
        console.print(table)
    for line in (EXPLANATION, *notes(results), *([files] if isinstance(files, str) else [STREAMED])):
        console.print(line, highlight=False)


def markdown(results: Results, files: Files, machine: str) -> str:
    """Return the tables of all cases and the goals as Markdown."""
    lines = [machine, "", EXPLANATION, ""]
    for line in (*notes(results), *([files] if isinstance(files, str) else [STREAMED])):
        lines += [line, ""]
    for title, columns, body in _tables(results, files):
        lines += [f"**{title}**", "", *markdown_table(columns, body), ""]
    return "\n".join(lines)


def _tables(results: Results, files: Files) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    tables = [
        ("Merging", COLUMNS, rows(results)),
        ("Files to files", STREAM_COLUMNS, stream_rows(files)),
        ("Goals of merging", GOAL_COLUMNS, goals_table(goals(results, files))),
    ]
    return [table for table in tables if table[2]]


def _streamed(files: Files) -> Mapping[str, Streamed]:
    return {} if files is None or isinstance(files, str) else files
