"""What a cell's statistic reads off the records of its runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.columns import AVERAGE
from fusionbench_lite.evaluation.measures import measure_of, shared
from fusionbench_lite.planning.experiments import CellSpec, Run, Statistic
from fusionbench_lite.planning.experiments.statistics import FRACTION, MEGABYTES
from fusionbench_lite.tables.compare import compare
from fusionbench_lite.tables.records import Record
from fusionbench_lite.tables.rows import Row, Rows
from fusionbench_lite.tables.statistics import average_interval, mean_std

Interval = tuple[float, float]
_MEBIBYTE = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """A number in the unit of its cell: the mean over `seeds`, its standard deviation (None for one seed), the interval of the
    sampling of test examples (None where a statistic has none), and whose it is."""

    value: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    keys: tuple[str, ...] = ()
    select: str = ""
    families: tuple[str, ...] = ()
    trial: bool = False
    uses_test_labels: bool = False
    higher: bool = True


def reading(spec: CellSpec, records: Mapping[Run, Record], unit: str) -> Reading | None:
    """Return what the records say of a cell, None where those of no seed are complete."""
    if not spec.statistic.needs_run:
        return _counted(spec, unit)
    complete = [place for place in range(len(spec.runs[0])) if _complete(spec, place, records)]
    if not complete:
        return None
    used = [records[variation[place]] for place in complete for variation in spec.runs]
    beside = [records[variation[place]] for place in complete for variation in spec.beside]
    numbers = [_reduced(spec, place, records, unit) for place in complete]
    mean, deviation, count = mean_std([value for value, _ in numbers])
    interval = _interval(spec, complete, records, unit, [one for _, one in numbers])
    last = used[0].selection(spec.select)
    return Reading(
        value=mean, sd=None if math.isnan(deviation) else deviation, low=interval[0] if interval else None,
        high=interval[1] if interval else None, seeds=count, keys=tuple(dict.fromkeys(record.key for record in used)),
        select=last[0],
        families=tuple(dict.fromkeys(record.data["checkpoints"]["family"] for record in used)),
        trial=any(record.limit is not None for record in (*used, *beside)),
        uses_test_labels=any(record.selection(spec.select)[1]["uses_test_labels"] for record in (*used, *beside)),
        higher=_higher(used[0], spec),
    )


def _complete(spec: CellSpec, place: int, records: Mapping[Run, Record]) -> bool:
    return all(variation[place] in records for variation in (*spec.runs, *spec.beside))


def _higher(record: Record, spec: CellSpec) -> bool:
    if not spec.statistic.is_score:
        return False
    measures = record.measures()
    if spec.statistic.argument in measures:
        return measures[spec.statistic.argument].higher
    whole = shared(measures.values())
    return whole.higher if whole is not None else True


def _reduced(spec: CellSpec, place: int, records: Mapping[Run, Record], unit: str) -> tuple[float, Interval | None]:
    """Return the number of one seed, and its interval where there is one variation."""
    numbers = []
    for number, variation in enumerate(spec.runs):
        beside = records[spec.beside[number][place]] if spec.beside else None
        numbers.append(_number(spec, records[variation[place]], beside, unit))
    values = [value for value, _ in numbers]
    if spec.reduce is None:
        return numbers[0]
    reduced = {"min": min(values), "max": max(values), "mean": math.fsum(values) / len(values)}
    return reduced[spec.reduce], None


def _interval(
    spec: CellSpec, complete: Sequence[int], records: Mapping[Run, Record], unit: str, ends: Sequence[Interval | None]
) -> Interval | None:
    """Return the interval of the mean over seeds: its ends averaged, as if all seeds shared their test examples, or paired."""
    if spec.statistic.name == "gain" and spec.reduce is None:
        return _paired(spec, complete, records, unit)
    known = [one for one in ends if one is not None]
    if len(known) < len(ends):
        return None
    return math.fsum(low for low, _ in known) / len(known), math.fsum(high for _, high in known) / len(known)


def _paired(spec: CellSpec, complete: Sequence[int], records: Mapping[Run, Record], unit: str) -> Interval:
    ours = tuple(records[spec.runs[0][place]] for place in complete)
    others = tuple(records[spec.beside[0][place]] for place in complete)
    rows = Rows("", "", (
        Row("a", "", tuple(record.key for record in ours)), Row("b", "", tuple(record.key for record in others))
    ))
    found = compare(rows, [*ours, *others], "a", "b", spec.select)
    scale = 1 if unit == FRACTION else found.measure.scale
    return scale * found.paired.interval[0], scale * found.paired.interval[1]


def _number(spec: CellSpec, record: Record, beside: Record | None, unit: str) -> tuple[float, Interval | None]:
    """Return a statistic of one record, in the unit of the cell, and its interval."""
    name, argument = spec.statistic.name, spec.statistic.argument
    if name == "seconds":
        if argument not in record.data["seconds"]:
            raise InputError(f"{record.path.name} did not measure the seconds of {argument!r}; run it again with overwrite=true")
        return float(record.data["seconds"][argument]), None
    if name == "peak_bytes":
        return record.data["peak_bytes"] / (_MEBIBYTE if unit == MEGABYTES else 1), None
    scale = 1 if unit == FRACTION else 100
    if name == "gain":
        assert beside is not None
        return _score(spec, record, Statistic("average"), scale)[0] - _score(spec, beside, Statistic("average"), scale)[0], None
    if name == "normalized":
        assert beside is not None
        return _relative(spec, record, beside)
    return _score(spec, record, spec.statistic, scale)


def _relative(spec: CellSpec, record: Record, beside: Record) -> tuple[float, Interval]:
    """Return the score of a task, or the mean over tasks, where the specialist's is 100; its interval takes that one as given."""
    argument = spec.statistic.argument
    names = record.tasks if argument == AVERAGE else [argument]
    ratios, ends = [], []
    for task in names:
        whole = _score(spec, beside, Statistic("task", task), 1)[0]
        if whole == 0:
            raise InputError(f"{beside.path}: the specialist answers nothing of {task!r}, so that no score is relative to it")
        value, (low, high) = _score(spec, record, Statistic("task", task), 1)
        ratios.append(100 * value / whole)
        ends.append((100 * low / whole, 100 * high / whole))
    return math.fsum(ratios) / len(ratios), average_interval(ratios, ends)


def _score(spec: CellSpec, record: Record, statistic: Statistic, scale: int) -> tuple[float, Interval]:
    """Return the value of a task or the unweighted mean of several, with its interval."""
    cells = record.selection(spec.select)[1]["per_task"]
    names = _tasks(record, statistic)
    for task in names:
        if task not in cells:
            raise InputError(f"{record.path.name} has no task {task!r}, which the column {spec.column!r} shows, but {record.tasks}")
    values = [cells[task]["value"] for task in names]
    ends = [(cells[task]["interval"][0], cells[task]["interval"][1]) for task in names]
    measures = {measure_of(cells[task]).scale for task in names}
    by = scale if measures == {100} else 1
    low, high = average_interval(values, ends)
    return by * (math.fsum(values) / len(values)), (by * low, by * high)


def _tasks(record: Record, statistic: Statistic) -> list[str]:
    if statistic.name == "task":
        return [statistic.argument]
    seen = _seen(record)
    chosen = {
        "average": record.tasks, "average_seen": seen, "average_unseen": [task for task in record.tasks if task not in seen],
    }[statistic.name]
    if not chosen:
        raise InputError(f"{record.path}: every task has an expert that was merged, so none is unseen")
    return chosen


def _seen(record: Record) -> list[str]:
    """Return the tasks whose experts a run merged."""
    chosen: Any = record.data["config"].get("checkpoints", {}).get("experts")
    if chosen is None:
        return record.tasks
    return record.tasks[:chosen] if isinstance(chosen, int) else list(chosen)


def _counted(spec: CellSpec, unit: str) -> Reading:
    """Return a number that needs no run."""
    from fusionbench_lite.tables.cells.counts import count

    return Reading(value=count(spec, unit), higher=False)
