"""From the cells of an experiment, the notes of its runs and the published numbers to a grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fusionbench_lite.errors import InputError
from fusionbench_lite.planning.experiments import CellSpec, Experiment, Run, cells
from fusionbench_lite.planning.experiments import files as experiment_files
from fusionbench_lite.planning.experiments.runs import Note
from fusionbench_lite.planning.experiments.runs import notes as notes_of
from fusionbench_lite.planning.experiments.statistics import SECONDS
from fusionbench_lite.tables import published, records
from fusionbench_lite.tables.cells import claims
from fusionbench_lite.tables.cells.grid import (
    FLAGGED,
    INSIDE,
    NOT_RUN,
    OTHER_FAMILY,
    OUTSIDE,
    TEST_LABELS,
    TRIAL,
    Cell,
    Grid,
    Line,
)
from fusionbench_lite.tables.cells.readings import Reading, reading
from fusionbench_lite.tables.published import Number
from fusionbench_lite.tables.records import Record

NO_FAMILY = "none"
"""The family of a number that no checkpoints were needed for."""


def grid(experiment: Experiment, results_dir: Path, overrides: Sequence[str] = ()) -> Grid:
    """Return the table of an experiment as the records under results_dir answer it. Runs nothing."""
    specs = cells(experiment, overrides)
    found, there = records_of(specs, results_dir)
    answers = answered(experiment, specs)
    unread: list[str] = []
    shown = {(spec.row, spec.column): _cell(spec, there, answers.get((spec.row, spec.column)), unread) for spec in specs}
    return Grid(
        experiment=experiment.name, title=experiment.title, question=experiment.question, scale=experiment.scale,
        rows=tuple(_line(line) for line in experiment.rows), columns=tuple(_line(line) for line in experiment.columns), cells=shown,
        notes=(*_notes(experiment, specs, there, [run for run, note in found.items() if not note.current]), *dict.fromkeys(unread)),
    )


def records_of(specs: Iterable[CellSpec], results_dir: Path) -> tuple[Mapping[Run, Note], dict[Run, Record]]:
    """Return the notes that runs of cells left, and the records that are still there."""
    found = notes_of(results_dir, (run for spec in specs for run in spec.all_runs))
    there = {run: record for run, note in found.items() if (record := records.find(results_dir, note.key)) is not None}
    return found, there


def _line(line: experiment_files.Line) -> Line:
    return Line(name=line.name, group=line.group, note=line.note)


def answered(experiment: Experiment, specs: Iterable[CellSpec]) -> dict[tuple[str, str], Number]:
    """Return the published number of every cell that has one.

    Raises InputError where the fields of a cell fit several numbers or none, and where two cells answer one number.
    """
    if experiment.published is None:
        return {}
    paper, _, table = experiment.published.partition("/")
    every = published.numbers(paper, table)
    found: dict[tuple[str, str], Number] = {}
    taken: dict[Number, tuple[str, str]] = {}
    for spec in specs:
        if spec.omitted is not None or not spec.published:
            continue
        fits = [number for number in every if number.matches(spec.published)]
        where = f"{experiment.name}: the cell of {spec.row!r} and {spec.column!r}"
        if len(fits) != 1:
            asked = ", ".join(f"{key}={value!r}" for key, value in spec.published.items())
            raise InputError(f"{where} answers {len(fits)} published numbers, those of {asked}: one is meant, or omit: true")
        if fits[0] in taken:
            row, column = taken[fits[0]]
            raise InputError(f"{where} answers the number that the cell of {row!r} and {column!r} answers, {fits[0].value:g}")
        taken[fits[0]] = (spec.row, spec.column)
        found[spec.row, spec.column] = fits[0]
    return found


def _cell(spec: CellSpec, there: Mapping[Run, Record], number: Number | None, unread: list[str]) -> Cell:
    """Return a cell; what its records do not hold leaves it empty, and is told in `unread`."""
    flags = [flag for flag in published.flags_of(number) if not flag.general] if number is not None else []
    unit = number.unit if number is not None else spec.unit or spec.statistic.unit
    ours = None
    try:
        ours = reading(spec, there, unit) if spec.omitted is None else None
    except InputError as error:
        unread.append(f"{spec.row}, {spec.column}: {error}")
    target = number.value if number is not None else None
    return Cell(
        statistic=str(spec.statistic), unit=unit, ours=ours.value if ours else None, sd=ours.sd if ours else None,
        low=ours.low if ours else None, high=ours.high if ours else None, seeds=ours.seeds if ours else 0, published=target,
        printed=number.value_as_printed if number is not None else None,
        corrected=published.corrected(number) if number is not None else None, flags=tuple(flag.note for flag in flags),
        difference=ours.value - target if ours is not None and target is not None else None,
        marks=tuple(_marks(spec, ours, number, bool(flags))), family="+".join(ours.families) if ours else "",
        select=ours.select if ours else spec.select, keys=ours.keys if ours else (), omitted=spec.omitted,
        comparable=ours is not None and _comparable(spec, ours), higher=ours.higher if ours else spec.statistic.higher,
    )


def _comparable(spec: CellSpec, ours: Reading) -> bool:
    """Whether best and second are marked: results of one merged model, whole, without the test labels."""
    from fusionbench_lite import registry

    method = spec.runs[0][0].values.get("method", "")
    if not spec.statistic.is_score or ours.trial or (ours.uses_test_labels and spec.select != "best_test"):
        return False
    return method not in registry.names() or registry.get(method).family not in registry.UNRANKED


def _marks(spec: CellSpec, ours: Reading | None, number: Number | None, flagged: bool) -> Iterable[str]:
    if ours is None:
        if spec.omitted is None:
            yield NOT_RUN
    elif number is not None:
        if (inside := _inside(ours, number)) is not None:
            yield INSIDE if inside else OUTSIDE
        if ours.families and number.family != NO_FAMILY and number.family not in ours.families:
            yield OTHER_FAMILY
    if flagged:
        yield FLAGGED
    if (ours is not None and ours.uses_test_labels) or (number is not None and number.selection == "best_test"):
        yield TEST_LABELS
    if ours is not None and ours.trial:
        yield TRIAL


def _inside(ours: Reading, number: Number) -> bool | None:
    """Say whether the published value lies in our interval, None where there is none to say it by.

    What was printed stands for all values that round to it. Counts have no interval: they agree where ours rounds to the printed.
    """
    half = number.half_unit
    if ours.low is not None and ours.high is not None:
        return ours.low - half <= number.value <= ours.high + half
    return abs(ours.value - number.value) <= half if number.unit not in (SECONDS, "megabytes") else None


def _notes(experiment: Experiment, specs: Sequence[CellSpec], there: Mapping[Run, Record], stale: Sequence[Run]) -> Iterable[str]:
    yield from experiment.notes
    if stale:
        yield (
            f"{len(stale)} runs were made under other presets or by another version: run the experiment again, which finds what is "
            "still valid."
        )
    yield from dict.fromkeys(f"{spec.row}, {spec.column}: {spec.note}" for spec in specs if spec.note and spec.omitted is None)
    yield from dict.fromkeys(caveat for record in there.values() for caveat in record.data.get("caveats", []))
    yield from claims.sentences(experiment, specs, there)
