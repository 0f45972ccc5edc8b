"""Two rows of a table on the same test examples, over one run or over the seeds they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.evaluation import metrics
from fusionbench_lite.evaluation.intervals import RESAMPLES, Interval, percentiles
from fusionbench_lite.evaluation.measures import ACCURACY, Measure, shared
from fusionbench_lite.tables.records import Record
from fusionbench_lite.tables.rows import Row, Rows
from fusionbench_lite.tables.statistics import Paired, mcnemar, stratified_bootstrap, stratified_draws

Array = NDArray[Any]
TestSet = tuple[str, str]
"""A task and the hash of its data."""
Counted = dict[TestSet, list[Array]]
"""Every pair's differences of correctness [N]."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Row a minus row b: the paired statistics, per task difference and discordant counts, and the number of seeds.

    `measure` is that of the average over tasks. Differences are as records hold them, fractions where it is in percent; the
    tasks of `whole_set` are judged by a metric of the whole set, so that no example is right or wrong: no counts.
    """

    a: str
    b: str
    paired: Paired
    per_task: dict[str, tuple[float, int | None, int | None]]  # difference, only a right, only b right
    seeds: int
    uses_test_labels: tuple[bool, bool]
    measure: Measure = ACCURACY
    whole_set: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[float, float, float]:
        """The difference and the ends of its interval as they are printed."""
        scale, paired = self.measure.scale, self.paired
        return scale * paired.difference, scale * paired.interval[0], scale * paired.interval[1]


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

    The difference is that of the average over tasks, its interval a paired bootstrap over test examples, stratified by
    task. Seeds that share a test set are first averaged per example; seeds with test sets of their own are strata of
    their own. McNemar's test is about examples that are right or wrong, needs independent ones and is left out when several
    seeds judged the same. Raises InputError when a row is unknown, when no seed is shared, when the test data or the metrics
    differ, or when the metrics of the tasks have no average.
    """
    by_key = {record.key: record for record in records}
    row_a, row_b = find_row(rows, a), find_row(rows, b)
    pairs = _pairs(row_a, _runs(row_a, by_key), row_b, _runs(row_b, by_key))
    measure, tasks = _measure(pairs[0][0]), pairs[0][0].tasks
    counted, whole = _counted(pairs, select), _whole_sets(pairs, select)
    per_task: dict[str, tuple[float, int | None, int | None]] = {}
    for task in tasks:
        values = [value for (t, _), group in whole.items() if t == task for value in group.differences]
        correct = [each for (t, _), group in counted.items() if t == task for each in group]
        per_task[task] = (float(np.mean(values)), None, None) if values else _per_task(correct)
    only_a, only_b = sum(cell[1] or 0 for cell in per_task.values()), sum(cell[2] or 0 for cell in per_task.values())
    independent = bool(counted) and all(len(group) == 1 for group in counted.values())
    exact_p, mid_p = mcnemar(only_a, only_b) if independent else (None, None)
    examples = sum(group[0].size for group in counted.values()) + sum(group.labels.size for group in whole.values())
    estimate, interval = _average(counted, whole, len(pairs), len(tasks))
    paired = Paired(
        difference=estimate, interval=interval, only_a=only_a, only_b=only_b, examples=examples, exact_p=exact_p, mid_p=mid_p
    )
    flags = tuple(bool(run.selection(select)[1]["uses_test_labels"]) for run in pairs[0])
    judged_whole = tuple(dict.fromkeys(task for task, _ in whole))
    return Comparison(
        a=row_a.name, b=row_b.name, paired=paired, per_task=per_task, seeds=len(pairs), uses_test_labels=(flags[0], flags[1]),
        measure=measure, whole_set=judged_whole,
    )


def _average(counted: Counted, whole: Mapping[TestSet, _WholeSet], pairs: int, tasks: int) -> tuple[float, Interval]:
    """Return the difference of the average over tasks and its interval.

    10,000 resamples where every example is right or wrong, RESAMPLES where a metric has to be computed in each.
    """
    strata = [(len(group) / pairs / tasks, np.mean(np.stack(group), axis=0)) for group in counted.values()]
    if not whole:
        return stratified_bootstrap(strata)
    estimate, draws = stratified_draws(strata, resamples=RESAMPLES)
    for (task, data), group in whole.items():
        weight = len(group.pairs) / pairs / tasks
        estimate, draws = estimate + weight * float(np.mean(group.differences)), draws + weight * group.draws(task, data)
    return estimate, percentiles(draws)


@dataclass
class _WholeSet:
    """Pairs of runs judged on one test set by a metric of the whole set: `pairs` of predictions [N], one array of `labels`
    [N], and the `differences` of their values."""

    metric: str
    labels: Array
    pairs: list[tuple[Array, Array]] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)

    def draws(self, *key: object) -> NDArray[np.float64]:
        """Return the difference, averaged over the pairs, in every resample of the test examples [RESAMPLES]."""
        return metrics.get(self.metric).differences(self.pairs, self.labels, "paired", *key)


def _counted(pairs: Sequence[tuple[Record, Record]], select: str) -> Counted:
    """Return every pair's differences of correctness [N], by task and test set."""
    groups: Counted = {}
    for first, second in pairs:
        correct_a, correct_b = first.correct(select), second.correct(select)
        for task in (task for task in pairs[0][0].tasks if task in correct_a):
            group = groups.setdefault((task, str(first.data["data"].get(task))), [])
            group.append(correct_a[task].astype(np.float64) - correct_b[task])
    return groups


def _whole_sets(pairs: Sequence[tuple[Record, Record]], select: str) -> dict[TestSet, _WholeSet]:
    """Return what the metrics of whole sets judge, by task and test set."""
    groups: dict[TestSet, _WholeSet] = {}
    for first, second in pairs:
        answers_a, answers_b = first.answers(select), second.answers(select)
        cells_a, cells_b = (run.selection(select)[1]["per_task"] for run in (first, second))
        for task in (task for task in pairs[0][0].tasks if task in answers_a):
            (found_a, labels), (found_b, labels_b) = answers_a[task], answers_b[task]
            key = (task, str(first.data["data"].get(task)))
            group = groups.setdefault(key, _WholeSet(cells_a[task]["metric"], labels))
            if not (np.array_equal(labels, group.labels) and np.array_equal(labels_b, group.labels)):
                raise InputError(f"{first.path.name} and {second.path.name} hold different labels of task '{task}': run both again")
            group.pairs.append((found_a, found_b))
            group.differences.append(cells_a[task]["value"] - cells_b[task]["value"])
    return groups


def _measure(record: Record) -> Measure:
    measures = record.measures()
    common = shared(measures.values())
    if common is None:
        kinds = ", ".join(f"{task}: {measure.phrase}" for task, measure in measures.items())
        raise InputError(f"differences of the average need tasks of one unit and direction, got {kinds}")
    return common


def _per_task(differences: Sequence[Array]) -> tuple[float, int | None, int | None]:
    pooled = np.concatenate(differences)
    return float(np.mean([d.mean() for d in differences])), int((pooled > 0).sum()), int((pooled < 0).sum())


def _runs(row: Row, by_key: dict[str, Record]) -> list[Record]:
    records = [by_key[key] for key in row.keys if key in by_key]
    if not records:
        raise InputError(f"row '{row.name}' has no finished record; run its experiment first")
    return records


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
            judged = [run.measures()[task] for run in (first, second)]
            if judged[0] != judged[1]:
                raise InputError(
                    f"'{row_a.name}' was judged by {judged[0].phrase} on task '{task}', '{row_b.name}' by {judged[1].phrase}; "
                    "run both with the same metric"
                )
            if not same or sizes[0] != sizes[1]:
                raise InputError(
                    f"'{row_a.name}' and '{row_b.name}' were not judged on the same examples of task "
                    f"'{task}' ({sizes[0]} and {sizes[1]} examples); run both with the same data and limit"
                )
    return pairs
