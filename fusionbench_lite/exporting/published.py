"""The papers' numbers that a record's run stands beside, as the notes of published experiments lead to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fusionbench_lite.evaluation.columns import AVERAGE
from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.experiments import CellSpec, Run
from fusionbench_lite.planning.experiments.runs import NOTES, run_of
from fusionbench_lite.tables import published
from fusionbench_lite.tables.published import Number
from fusionbench_lite.tables.records import Record


def numbers_of(record: Record, rule: str) -> dict[str, list[str]]:
    """Return by task, or `average`, the published values that cells of this run and selection rule reproduce, with their tables.

    Empty where no published experiment made the record.
    """
    runs = _runs(record)
    found: dict[str, list[str]] = {}
    for name in experiments.names() if runs else ():
        experiment = experiments.read(name)
        if experiment.published is None:
            continue
        paper, _, table = experiment.published.partition("/")
        for column, number in _numbers(experiments.cells(experiment), runs, record, rule, published.numbers(paper, table)):
            said = f"{number.value_as_printed} ({paper}, {table.replace('_', ' ')})"
            if said not in found.setdefault(column, []):
                found[column].append(said)
    return found


def _runs(record: Record) -> frozenset[Run]:
    """Return the runs of experiments whose notes lead to a record; notes that cannot be read are none."""
    found = set()
    for path in sorted((Path(record.path).absolute().parent.parent / NOTES).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["key"] == record.key:
                found.add(run_of(content["overrides"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return frozenset(found)


def _numbers(
    specs: tuple[CellSpec, ...], runs: frozenset[Run], record: Record, rule: str, every: tuple[Number, ...]
) -> Iterator[tuple[str, Number]]:
    for spec in specs:
        statistic = spec.statistic
        if spec.omitted is not None or not spec.published or spec.reduce is not None or statistic.name not in ("task", "average"):
            continue
        if runs.isdisjoint(spec.all_runs) or record.selection(spec.select)[0] != rule:
            continue
        fits = [number for number in every if number.matches(spec.published)]
        if len(fits) == 1:
            yield (statistic.argument if statistic.name == "task" else AVERAGE), fits[0]
