"""Records to pandas: a long frame (row x seed x task) and the wide table (one line per row) that every format shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.columns import AVERAGE, DIFFERENCE, ENDS, LABEL, RECORDS, TIMES, hidden
from fusionbench_lite.evaluation.measures import ACCURACY, Measure, measure_of, shared
from fusionbench_lite.evaluation.selection import RULES
from fusionbench_lite.registry import REFERENCE, SOME
from fusionbench_lite.tables.compare import compare, find_row
from fusionbench_lite.tables.families import family, label
from fusionbench_lite.tables.notes import notes
from fusionbench_lite.tables.records import Record
from fusionbench_lite.tables.rows import Row, Rows
from fusionbench_lite.tables.statistics import average_interval
from fusionbench_lite.tables.titles import setting

SELECTIONS = RULES


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table ready to be shown: `frame` has one line per row (index: label), values as printed: what is in percent times 100.

    Columns of `frame`, named in evaluation.columns: DETAILS, then per task and for the average NAME, NAME_low, NAME_high, NAME_std
    (mean over seeds, 95 % interval, sample standard deviation over seeds), then `seconds` (merge and adapt: the method's own
    cost), `seconds_total` (with loading and evaluation), with a baseline DIFFERENCE (points of average), and `records`.
    `long` has one line per row, seed and task. `measures` says of every column of values what it is, by the records; the
    average has none, and is nan, where units or directions of the tasks differ. Reference rows come first in `frame`; the
    others keep their order.
    """

    name: str
    title: str
    question: str
    select: str
    tasks: tuple[str, ...]
    frame: pd.DataFrame
    long: pd.DataFrame
    notes: tuple[str, ...]
    trial: bool = False
    baseline: str | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of values: the tasks, then the average."""
        return (*self.tasks, AVERAGE)

    @property
    def average(self) -> Measure:
        """What the average over tasks is."""
        return self.measures.get(AVERAGE, ACCURACY)

    def decimals(self, column: str) -> int:
        """The decimals that a column of values is printed with."""
        return self.measures.get(column, ACCURACY).decimals

    def higher(self, column: str) -> bool:
        """Whether higher values of a column are better."""
        return self.measures.get(column, ACCURACY).higher

    @property
    def seeds(self) -> int:
        """The largest number of seeds of any row."""
        return int(self.frame["seeds"].max())


def build(rows: Rows, records: Iterable[Record], select: str = "last", *, baseline: str | None = None) -> Table:
    """Aggregate the records of `rows` under a selection rule, with the paired difference to a `baseline` row if given.

    Trials (records with a limit) are left out unless every record is one; the table is then marked as a trial.
    Raises InputError when nothing is left, when rows have different tasks, or for an unknown selection or baseline.
    """
    if select not in SELECTIONS:
        raise InputError(f"unknown selection '{select}': choose one of {', '.join(SELECTIONS)}")
    wanted = {record.key: record for record in records if record.key in set(rows.keys)}
    if not wanted:
        raise InputError(f"experiment {rows.experiment}: none of its {len(rows.keys)} records is there; run it first")
    trial = all(record.limit is not None for record in wanted.values())
    kept = {key: record for key, record in wanted.items() if trial or record.limit is None}
    tasks, measures = _tasks(rows, kept)
    long = _long(rows, kept, select)
    frame = _wide(rows, long, tasks)
    if baseline is not None:
        baseline = find_row(rows, baseline).name
        frame = _with_difference(frame, rows, kept, baseline, select)
    remarks = notes(rows, frame, list(wanted.values()), trial=trial, select=select, baseline=baseline)
    return Table(
        name=rows.experiment, title=rows.title, question=rows.question, select=select, tasks=tasks, frame=frame, long=long,
        notes=remarks, trial=trial, baseline=baseline, measures=measures,
    )


def from_records(records: Iterable[Record], select: str = "last", *, title: str = "") -> Table:
    """A table of records outside any experiment: one row per method, model, checkpoints and settings, their seeds pooled.

    Runs of one method that differ in more than the seed get rows of their own, told apart by their key.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        settings = {name: entry for name, entry in record.data["hyperparameters"].items() if name != "seed"}
        groups.setdefault((record.method, setting(record), repr(sorted(settings.items()))), []).append(record)
    several = [group[0] for group in groups]
    lines = []
    for (method, _, _), runs in groups.items():
        name = label(method) if several.count(method) == 1 else f"{label(method)} {runs[0].key[:6]}"
        lines.append(Row(name, method, tuple(run.key for run in runs)))
    return build(Rows("", title, tuple(lines)), [run for runs in groups.values() for run in runs], select)


def read_csv(path: str | Path) -> pd.DataFrame:
    """Read a table.csv back as the `frame` it was written from."""
    frame = pd.read_csv(path, index_col="label", keep_default_na=False, na_values=[""])
    return frame.fillna({"select": "", "records": ""})


def _tasks(rows: Rows, kept: dict[str, Record]) -> tuple[tuple[str, ...], dict[str, Measure]]:
    """Return the tasks of all rows, and the measure of every column of values."""
    first = next(record for key in rows.keys if (record := kept.get(key)) is not None)
    for record in kept.values():
        if set(record.tasks) != set(first.tasks):
            raise InputError(
                f"averages over different tasks do not compare: {first.path.name} has {first.tasks}, "
                f"{record.path.name} has {record.tasks}; put them in tables of their own"
            )
        for task, measure in record.measures().items():
            if measure != first.measures()[task]:
                raise InputError(
                    f"task '{task}' is judged by {first.measures()[task].phrase} in {first.path.name} and by {measure.phrase} in "
                    f"{record.path.name}; put them in tables of their own"
                )
    if (refused := hidden(first.tasks)) is not None:
        raise InputError(f"{first.path.name}: a task called {refused[0]!r} has no place in tables, because {refused[1]}; rename it")
    measures = first.measures()
    whole = shared(measures.values())
    return tuple(first.tasks), measures | ({AVERAGE: whole} if whole is not None else {})


def _long(rows: Rows, kept: dict[str, Record], select: str) -> pd.DataFrame:
    lines: list[dict[str, Any]] = []
    for row in rows.rows:
        for record in (kept[key] for key in row.keys if key in kept):
            used, selection = record.selection(select)
            common = {
                "label": row.name,
                "method": row.method,
                "family": SOME if _merges_some(record) else family(row.method, record.adapted),
                "key": record.key,
                "seed": record.seeds.get("seed"),
                "select": used,
                "step": selection["step"],
                "uses_test_labels": bool(selection["uses_test_labels"]) or used == "best_test",
                "trial": record.limit is not None,
                "seconds": sum(record.data["seconds"].get(part, 0.0) for part in ("merge", "adapt")),
                "seconds_total": record.data["seconds"].get("total"),
            }
            for task, (scale, value, low, high) in _numbers(selection["per_task"]).items():
                lines.append({**common, "task": task, "value": scale * value, "low": scale * low, "high": scale * high})
    long = pd.DataFrame(lines)
    # Ten decimals: enough for any count, and 0.57 * 100 reads 57 instead of 56.99999999999999.
    long[["value", "low", "high"]] = long[["value", "low", "high"]].round(10)
    return long


def _numbers(cells: Mapping[str, Any]) -> dict[str, tuple[int, float, float, float]]:
    """Return scale, value and interval of every task and of their average, which is nan where it means nothing."""
    numbers = {task: (measure_of(cell).scale, cell["value"], *cell["interval"]) for task, cell in cells.items()}
    whole = shared(measure_of(cell) for cell in cells.values())
    if whole is None:
        return numbers | {AVERAGE: (1, math.nan, math.nan, math.nan)}
    values = [cell["value"] for cell in cells.values()]
    low, high = average_interval(values, [(cell["interval"][0], cell["interval"][1]) for cell in cells.values()])
    return numbers | {AVERAGE: (whole.scale, sum(values) / len(values), low, high)}


def _wide(rows: Rows, long: pd.DataFrame, tasks: tuple[str, ...]) -> pd.DataFrame:
    """One line per row. Limits of the interval are averaged over seeds, as if all seeds shared their test examples:
    right when they do (the seeds' errors move together), too wide, never too narrow, when they do not."""
    cells = long.groupby(["label", "task"], sort=False).agg(
        mean=("value", "mean"), low=("low", "mean"), high=("high", "mean"), std=("value", "std")
    )
    runs = long[long["task"] == AVERAGE].groupby("label", sort=False)
    names = [row.name for row in rows.rows]
    values: dict[str, Any] = {
        "method": pd.Series({row.name: row.method for row in rows.rows}),
        "family": pd.Series({row.name: family(row.method) for row in rows.rows}),
        "select": runs["select"].agg(lambda used: "+".join(dict.fromkeys(used))).reindex(names, fill_value=""),
        "uses_test_labels": runs["uses_test_labels"].any().reindex(names, fill_value=False),
        "trial": runs["trial"].any().reindex(names, fill_value=False),
        "seeds": runs.size().reindex(names, fill_value=0),
    }
    values["family"].update(runs["family"].first())
    for task in (*tasks, AVERAGE):
        block = cells.xs(task, level="task")
        for statistic, suffix in zip(("mean", "low", "high", "std"), ("", *ENDS), strict=True):
            values[task + suffix] = block[statistic].astype(float)
    for name in TIMES:
        values[name] = runs[name].mean().astype(float)
    values[RECORDS] = runs["key"].agg(" ".join).reindex(names, fill_value="")
    frame = pd.DataFrame(values).reindex(names)
    frame.index.name = LABEL
    return pd.concat([frame[frame["family"] == REFERENCE], frame[frame["family"] != REFERENCE]])


def _merges_some(record: Record) -> bool:
    """Whether a run merged the experts of some of its tasks only."""
    chosen = record.data["config"].get("checkpoints", {}).get("experts")
    return chosen is not None and chosen != len(record.data["tasks"]) and chosen != record.data["tasks"]



def _with_difference(
    frame: pd.DataFrame, rows: Rows, kept: dict[str, Record], baseline: str, select: str
) -> pd.DataFrame:
    """Add average minus the baseline's average, in points, with its paired bootstrap interval."""
    lines = {}
    for name in frame.index[frame["seeds"] > 0]:
        if name != baseline:
            comparison = compare(rows, kept.values(), name, baseline, select)
            values = (comparison.paired.difference, *comparison.paired.interval)
            lines[name] = {
                column: round(comparison.measure.scale * value, 10) for column, value in zip(DIFFERENCE, values, strict=True)
            }
    return frame.join(pd.DataFrame.from_dict(lines, orient="index", columns=list(DIFFERENCE)).astype(float))
