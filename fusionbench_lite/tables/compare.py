"""Two rows of a table on the same test examples, over one run or over the seeds they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.tables.records import Record
from fusionbench_lite.tables.rows import Row, Rows
from fusionbench_lite.tables.statistics import Paired, mcnemar, stratified_bootstrap


@dataclass(frozen=True)
class Comparison:
    """Row a minus row b: the paired statistics, per-task points and discordant counts, and the number of seeds."""

    a: str
    b: str
    paired: Paired
    per_task: dict[str, tuple[float, int, int]]  # difference (fraction), only a right, only b right
    seeds: int
    uses_test_labels: tuple[bool, bool]


def find_row(rows: Rows, name: str) -> Row:
    """The row called `name`, by its label or by its method id. Raises InputError with the nearest name."""
    for row in rows.rows:
        if name == row.name:
            return row
    folded = [row for row in rows.rows if name.casefold() in (row.name.casefold(), row.method.casefold())]
    if len(folded) == 1:
        return folded[0]
    if folded:
        raise InputError(f"'{name}' is the method of several rows; say which: {', '.join(row.name for row in folded)}")
    choices = {*(row.name for row in rows.rows), *(row.method for row in rows.rows)}
    raise InputError(f"experiment {rows.experiment} has no row '{name}': {did_you_mean(name, choices)}")


def compare(rows: Rows, records: Iterable[Record], a: str, b: str, select: str = "last") -> Comparison:
    """Compare two rows (label or method id) run by run: runs are paired by their seeds and must share their data.

    The difference is that of task-averaged accuracy, its interval a paired bootstrap over test examples, stratified by
    task. Seeds that share a test set are first averaged per example; seeds with test sets of their own are strata of
    their own. McNemar's test needs independent examples and is left out when several seeds judged the same ones.
    Raises InputError when a row is unknown, when no seed is shared, or when the test data differ.
    """
    by_key = {record.key: record for record in records}
    row_a, row_b = find_row(rows, a), find_row(rows, b)
    pairs = _pairs(row_a, _runs(row_a, by_key), row_b, _runs(row_b, by_key))
    tasks = pairs[0][0].tasks
    differences: dict[tuple[str, str], list[np.ndarray]] = {}
    for first, second in pairs:
        correct_a, correct_b = first.correct(select), second.correct(select)
        for task in tasks:
            group = differences.setdefault((task, str(first.data["data"].get(task))), [])
            group.append(correct_a[task].astype(np.float64) - correct_b[task])
    strata = [
        (len(group) / len(pairs) / len(tasks), np.mean(np.stack(group), axis=0)) for group in differences.values()
    ]
    estimate, interval = stratified_bootstrap(strata)
    per_task = {task: _per_task([g for (t, _), gs in differences.items() if t == task for g in gs]) for task in tasks}
    only_a, only_b = sum(cell[1] for cell in per_task.values()), sum(cell[2] for cell in per_task.values())
    independent = all(len(group) == 1 for group in differences.values())
    exact_p, mid_p = mcnemar(only_a, only_b) if independent else (None, None)
    examples = sum(values.size for _, values in strata)
    flags = tuple(bool(run.selection(select)[1]["uses_test_labels"]) for run in pairs[0])
    paired = Paired(estimate, interval, only_a, only_b, examples, exact_p, mid_p)
    return Comparison(row_a.name, row_b.name, paired, per_task, len(pairs), (flags[0], flags[1]))


def _per_task(differences: Sequence[np.ndarray]) -> tuple[float, int, int]:
    pooled = np.concatenate(differences)
    return float(np.mean([d.mean() for d in differences])), int((pooled > 0).sum()), int((pooled < 0).sum())


def _runs(row: Row, by_key: dict[str, Record]) -> list[Record]:
    found = [by_key[key] for key in row.keys if key in by_key]
    if not found:
        raise InputError(f"row '{row.name}' has no finished record; run its experiment first")
    return found


def _pairs(row_a: Row, runs_a: list[Record], row_b: Row, runs_b: list[Record]) -> list[tuple[Record, Record]]:
    by_seed = {tuple(sorted(run.seeds.items())): run for run in runs_b}
    pairs = [(run, by_seed[s]) for run in runs_a if (s := tuple(sorted(run.seeds.items()))) in by_seed]
    if not pairs:
        seeds_a, seeds_b = [run.seeds for run in runs_a], [run.seeds for run in runs_b]
        raise InputError(f"'{row_a.name}' and '{row_b.name}' share no seed: {seeds_a} and {seeds_b}")
    for first, second in pairs:
        if set(first.tasks) != set(second.tasks):
            raise InputError(f"'{row_a.name}' has tasks {first.tasks}, '{row_b.name}' has {second.tasks}")
        for task in first.tasks:
            same = first.data["data"].get(task) == second.data["data"].get(task)
            sizes = [run.data["selections"]["last"]["per_task"][task]["examples"] for run in (first, second)]
            metrics = {run.data["selections"]["last"]["per_task"][task]["metric"] for run in (first, second)}
            if not same or sizes[0] != sizes[1] or metrics != {"accuracy"}:
                raise InputError(
                    f"'{row_a.name}' and '{row_b.name}' were not judged by accuracy on the same examples of task "
                    f"'{task}' ({sizes[0]} and {sizes[1]} examples); run both with the same data and limit"
                )
    return pairs
