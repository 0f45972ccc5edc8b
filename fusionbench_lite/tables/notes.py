"""The remarks under a table: what its numbers are, what its marks mean, and what is missing from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusionbench_lite.evaluation.measures import Measure, shared
from fusionbench_lite.tables.records import Record
from fusionbench_lite.tables.rows import Rows

DAGGER = "†"


def notes(
    rows: Rows, frame: Any, records: Sequence[Record], *, trial: bool, select: str, baseline: str | None
) -> tuple[str, ...]:
    """The remarks in reading order: what every table needs, then only what this one needs.

    frame: the wide table. records: all records of the rows, those left out of the table too.
    """
    kept = [record for record in records if trial or record.limit is None]
    remarks = [_reading(frame, kept)]
    flagged = frame["uses_test_labels"]
    if flagged.any():
        remarks.append(
            f"{DAGGER} reads test labels, to choose the step (best_test) or as a supervised oracle: optimistic, "
            "not comparable with rows that do not carry the mark."
        )
    if trial:
        limits = sorted({record.limit for record in kept if record.limit is not None})
        remarks.append(f"TRIAL: at most {' or '.join(map(str, limits))} examples per task; not a result.")
    elif len(kept) < len(records):
        left_out = sum(record.limit is not None for record in records)
        remarks.append(f"{left_out} trial record{'s' * (left_out > 1)} (with a limit) left out.")
    if select != "last":
        late = _without(rows, kept, select)
        if late:
            remarks.append(f"No {select} was recorded for {', '.join(late)}: the last step is shown.")
    if baseline is not None:
        remarks.append(f"Difference: average minus that of {baseline}, in points; paired bootstrap, 95% interval.")
    if _mixed_data(rows, kept):
        remarks.append("Rows were not all evaluated on the same data: their differences hold that too.")
    remarks.extend(_unseen(kept))
    remarks.extend(dict.fromkeys(caveat for record in kept for caveat in record.data.get("caveats", [])))
    remarks.extend(_said(rows, kept))
    remarks.extend(_missing(rows, kept))
    return tuple(remarks)


def _reading(frame: Any, kept: Sequence[Record]) -> str:
    sizes = {cell["examples"] for r in kept for cell in r.data["selections"]["last"]["per_task"].values()}
    measures = kept[0].measures()
    whole = shared(measures.values())
    examples = f"{min(sizes):,}" if len(sizes) == 1 else f"{min(sizes):,} to {max(sizes):,}"
    counts = sorted({int(n) for n in frame["seeds"] if n})
    seeds = ""
    if counts and counts[-1] > 1:
        spread = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        seeds = f", mean ± standard deviation over {spread} seeds"
    means = "" if len(set(measures.values())) == 1 else f" {_by_metric(measures)}."
    if whole is None:
        return f"Values on {examples} test examples per task{seeds}.{means} Their units or directions differ: no average."
    if means:
        means += " The average is the unweighted mean over them, as in GLUE's tables."
    return (
        f"{whole.phrase[0].upper()}{whole.phrase[1:]} on {examples} test examples per task{seeds}.{means} The 95% interval of the "
        "average covers the sampling of test examples only, not training or seeds."
    )


def _by_metric(measures: Mapping[str, Measure]) -> str:
    """Say which tasks each metric judges; the most frequent one judges "the others"."""
    tasks: dict[Measure, list[str]] = {}
    for task, measure in measures.items():
        tasks.setdefault(measure, []).append(task)
    *few, (most, tasks_of_most) = sorted(tasks.items(), key=lambda entry: len(entry[1]))
    parts = [f"{measure.phrase} for {', '.join(names)}" for measure, names in few]
    parts.append(f"{most.phrase} for {'the others' if len(tasks_of_most) > 2 else ', '.join(tasks_of_most)}")
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def _without(rows: Rows, kept: Sequence[Record], select: str) -> list[str]:
    """Rows that adapted but did not record the selection asked for."""
    lacking = {record.key for record in kept if record.adapted and select not in record.data["selections"]}
    return [row.name for row in rows.rows if lacking.intersection(row.keys)]


def _mixed_data(rows: Rows, kept: Sequence[Record]) -> bool:
    """Whether two runs of the same seeds saw different data."""
    seen: dict[tuple[tuple[str, int], ...], Any] = {}
    for record in kept:
        seeds = tuple(sorted(record.seeds.items()))
        if seen.setdefault(seeds, record.data["data"]) != record.data["data"]:
            return True
    return False


def _unseen(kept: Sequence[Record]) -> list[str]:
    """Say which experts were merged where not all were, and that adaptations read no other task."""
    remarks: dict[str, None] = {}
    for record in kept:
        seen = record.data.get("experts")
        if seen is not None:
            others = [task for task in record.tasks if task not in seen]
            remarks[f"Experts of {', '.join(seen)} are merged; {', '.join(others)} unseen."] = None
            if record.adapted:
                remarks[f"Adaptations read examples of {', '.join(seen)} alone."] = None
    return list(remarks)


def _said(rows: Rows, kept: Sequence[Record]) -> list[str]:
    """What the methods of the rows warned of, once each."""
    by_key = {record.key: record for record in kept}
    said = {
        f"{row.name}: {warning}."
        for row in rows.rows for key in row.keys if key in by_key for warning in by_key[key].data.get("warnings", [])
    }
    return sorted(said)


def _missing(rows: Rows, kept: Sequence[Record]) -> list[str]:
    there = {record.key for record in kept}
    lacking = {row.name: sum(key not in there for key in row.keys) for row in rows.rows if not there.issuperset(row.keys)}
    lacking.update({row.name: 1 for row in rows.rows if not row.keys})
    if not lacking:
        return []
    names = ", ".join(f"{name} ({count})" for name, count in lacking.items())
    return [f"Records missing or left out: {names}."]
