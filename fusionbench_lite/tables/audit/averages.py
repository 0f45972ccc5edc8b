"""Averages and gains, recomputed from the numbers that they are of.

A printed average agrees where it lies within half a unit of its own last digit and half a unit of the tasks' of the recomputed one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from fusionbench_lite.tables import published
from fusionbench_lite.tables.audit.found import Finding, grouped, is_task
from fusionbench_lite.tables.published import Number

DETAIL = {
    ("vit_b32", "8"): 11, ("vit_l14", "8"): 12, ("vit_b32", "14"): 13, ("vit_l14", "14"): 14, ("vit_b32", "20"): 15,
    ("vit_l14", "20"): 16,
}
"""The table of AdaRank that has the tasks of an average of its Table 1."""
LANGUAGE = {"roberta": 17, "gpt2": 18}
"""Likewise for its Table 2."""
ROUNDING = 1e-9


def checked(numbers: tuple[Number, ...]) -> list[tuple[Number, float, float]]:
    """Return every average that can be recomputed, with the recomputed value and what rounding may explain."""
    found = []
    for row in grouped(numbers).values():
        tasks = [number for number in row if is_task(number)]
        averages = [number for number in row if number.column.startswith("average")] if tasks else []
        found += [(average, *_recomputed(average, tasks)) for average in averages]
    return found


def _recomputed(average: Number, tasks: Sequence[Number]) -> tuple[float, float]:
    mean = math.fsum(number.value for number in tasks) / len(tasks)
    return mean, average.half_unit + max(number.half_unit for number in tasks) + ROUNDING


def _mended(number: Number) -> Number:
    """Return a number with the value that is likely right: a misprint of a detail does not speak against its average."""
    likely = next((flag.likely for flag in published.flags_of(number) if flag.likely is not None), None)
    return number if likely is None else dataclasses.replace(number, value=likely)


def of_rows(numbers: tuple[Number, ...]) -> Iterator[Finding]:
    """Yield averages that are not the mean of their row."""
    for average, mean, slack in checked(numbers):
        if abs(average.value - mean) > slack:
            yield Finding(number=average, likely=round(mean, 2), reason=f"the tasks of its row average {mean:.2f}")


def of_details(numbers: tuple[Number, ...]) -> Iterator[Finding]:
    """Yield averages of AdaRank's Tables 1 and 2 that are not the mean of its detail tables."""
    rows: dict[tuple[str, str], list[Number]] = {}
    for number in numbers:
        if number.paper == "adarank" and is_task(number):
            rows.setdefault((number.table, number.method), []).append(number)
    for number in numbers:
        table = None
        if (number.paper, number.table) == ("adarank", "table_1"):
            table = DETAIL[number.model, number.num_tasks]
        elif (number.paper, number.table) == ("adarank", "table_2"):
            table = LANGUAGE[number.model]
        method = "consensus_ta" if number.method == "consensus_merging" else number.method
        if table is None or not (tasks := rows.get((f"table_{table}", method))):
            continue
        mean, slack = _recomputed(number, tasks)
        mended, _ = _recomputed(number, [_mended(task) for task in tasks])
        if min(abs(number.value - mean), abs(number.value - mended)) > slack:
            yield Finding(
                number=number, likely=round(mean, 4 if number.unit == "fraction" else 2),
                reason=f"its {len(tasks)} tasks in Table {table} average {mean:.4g}",
            )


def of_gains(numbers: tuple[Number, ...]) -> Iterator[Finding]:
    """Yield gains that are not the difference to any row of their column: the row that comes nearest is named."""
    averages: dict[tuple[str, ...], list[Number]] = {}
    for number in numbers:
        if number.column == "average":
            averages.setdefault((number.paper, number.table, number.setting, number.model, number.num_tasks), []).append(number)
    for number in numbers:
        if number.metric != "accuracy_gain" or number.column != "gain":
            continue
        column = averages.get((number.paper, number.table, number.setting, number.model, number.num_tasks), [])
        own = [one for one in column if (one.method, one.variant) == (number.method, number.variant)]
        others = [one for one in column if one not in own]
        if not own or not others:
            continue
        nearest = min(others, key=lambda one: abs(own[0].value - one.value - number.value))
        gain = own[0].value - nearest.value
        if abs(gain - number.value) > own[0].half_unit + nearest.half_unit + number.half_unit + ROUNDING:
            yield Finding(
                number=number, likely=round(gain, 2),
                reason=f"{own[0].value:g} is no such gain over any row; {gain:+.1f} over {nearest.method_as_printed} comes nearest",
            )
