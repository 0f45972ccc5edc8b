"""What a line of the files of published numbers may hold. A refusal names file, line, column and the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.tables.published.lines import SEVERITIES

TASKS = frozenset({
    "sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd", "cifar100", "fer2013", "flowers102",
    "oxford_iiit_pet", "pcam", "stl10", "emnist", "cifar10", "food101", "fashion_mnist", "rendered_sst2", "kmnist", "cola", "mnli",
    "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli", "alpaca_eval", "gsm8k", "math", "human_eval", "mbpp",
})  # fmt: skip
"""Columns that are one task; the others are statistics."""
STATISTICS = frozenset({
    "average", "average_seen", "average_unseen", "gain", "gain_over_task_arithmetic", "runtime_s", "tta_time_s", "svd_time_s",
    "gpu_memory_mb", "parameters", "learnable_parameters", "learnable_parameters_share",
})  # fmt: skip
METRICS: Mapping[str, frozenset[str]] = {
    "percent": frozenset({"accuracy", "spearman", "mean_of_metrics", "accuracy_gain", "parameters"}),
    "fraction": frozenset({"accuracy", "matthews", "mean_of_metrics"}),
    "normalized": frozenset({"normalized_score", "parameters_relative_to_one_model"}),
    "seconds": frozenset({"wall_clock"}),
    "megabytes": frozenset({"gpu_memory"}),
    "count": frozenset({"parameters", "num_train", "num_validation", "num_test", "num_classes"}),
}
"""The metrics that a unit can have."""
_METRICS: frozenset[str] = frozenset().union(*METRICS.values())
_COLUMNS = TASKS | STATISTICS
RANGES: Mapping[str, tuple[float, float]] = {"percent": (0.0, 100.0), "fraction": (0.0, 1.0)}
SIGNED: Mapping[str, tuple[float, float]] = {"accuracy_gain": (-100.0, 100.0), "matthews": (-1.0, 1.0)}
FAMILIES = ("ta", "tall", "ta_tall", "fusionbench", "mergelm", "llama2", "none")
SELECTIONS = ("last", "best_test", "unstated", "none")
KINDS = (
    "average_mismatch", "duplicate_row", "shifted_columns", "implausible", "cross_paper_disagreement", "mislabelled",
    "impossible_fraction", "size_mismatch",
)
ORIGINS = ("given", "found")
_KEY = ("paper", "table", "setting", "model", "num_tasks", "method")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "results.csv": (
        *_KEY, "method_as_printed", "variant", "column", "metric", "value", "unit", "value_as_printed", "family", "selection",
    ),
    "tables.csv": ("paper", "table", "title", "setting", "models", "tasks", "methods_count", "reproduce", "numbers"),
    "flags.csv": (
        *_KEY, "variant", "column", "metric", "kind", "severity", "printed", "recomputed_or_other", "likely", "other_source",
        "origin", "how", "note",
    ),
}  # fmt: skip
"""The head of each file."""
_PLAIN = re.compile(r"-?\d+(\.\d+)?")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(h|min|m|s)")
_SECONDS = {"h": 3600, "min": 60, "m": 60, "s": 1}
_LARGE = {"M": 1e6, "B": 1e9}


class Line:
    """One line of a file: its fields, and how one of them is refused."""

    def __init__(self, file: Path, number: int, fields: Mapping[str, str]) -> None:
        self.file, self.number, self.fields = file, number, fields

    def __getitem__(self, column: str) -> str:
        return self.fields[column]

    def refused(self, column: str, reason: str) -> InputError:
        """Return the refusal of one field."""
        return refusal(self.file, self.number, f"column {column}: {reason}")

    def one_of(self, column: str, choices: Mapping[str, object] | tuple[str, ...] | frozenset[str]) -> str:
        """Return a field that has to be one of some words."""
        if (value := self[column]) not in choices:
            raise self.refused(column, f"unknown {column} {value!r}: {did_you_mean(value, choices)}")
        return value

    def whole(self, column: str) -> int:
        """Return a field that has to be a whole number of at least 0."""
        if not re.fullmatch(r"\d+", self[column]):
            raise self.refused(column, f"{self[column]!r} is no whole number: correct it")
        return int(self[column])

    def decimal(self, column: str) -> float:
        """Return a field that has to be a number in decimal digits."""
        if not _PLAIN.fullmatch(self[column]):
            raise self.refused(column, f"{self[column]!r} is no number: write digits and a point")
        return float(self[column])


def refusal(file: Path, line: int | str, reason: str) -> InputError:
    """Return the refusal of a place in a file."""
    return InputError(f"{file}, line {line}, {reason}")


def check_number(line: Line) -> float:
    """Return the value of a line of results.csv; raises InputError for a line that no published number has."""
    unit = line.one_of("unit", METRICS)
    metric = line.one_of("metric", _METRICS)
    if metric not in METRICS[unit]:
        raise line.refused("metric", f"{metric} has no unit {unit!r}: {unit} goes with {', '.join(sorted(METRICS[unit]))}")
    line.one_of("column", _COLUMNS)
    line.one_of("family", FAMILIES)
    line.one_of("selection", SELECTIONS)
    if line["num_tasks"]:
        line.whole("num_tasks")
    value = line.whole("value") if unit == "count" else line.decimal("value")
    low, high = SIGNED.get(metric, RANGES.get(unit, (0.0, math.inf)))
    if not low <= value <= high:
        raise line.refused("value", f"{line['value']} is not between {low:g} and {high:g}, where {metric} in {unit} lies")
    if not _says(line["value_as_printed"], line["value"], unit):
        raise line.refused("value", f"{line['value']} is not what value_as_printed says: {line['value_as_printed']!r}")
    return value


def check_flag(line: Line) -> float | None:
    """Return the likely value of a line of flags.csv; raises InputError for a line that is none of the audit's."""
    line.one_of("kind", KINDS)
    line.one_of("severity", SEVERITIES)
    line.one_of("origin", ORIGINS)
    if not line["note"]:
        raise line.refused("note", "empty: say what does not add up")
    return line.decimal("likely") if line["likely"] else None


def _says(printed: str, value: str, unit: str) -> bool:
    """Say whether a token of a paper holds a value: the same digits, or the same duration or count."""
    plain = printed.replace(",", "")
    duration = _DURATION.findall(plain)
    if unit == "seconds" and duration:
        return abs(sum(float(number) * _SECONDS[scale] for number, scale in duration) - float(value)) < 0.01
    if unit == "count" and plain[-1:] in _LARGE:
        return bool(_PLAIN.fullmatch(plain[:-1])) and float(plain[:-1]) * _LARGE[plain[-1]] == float(value)
    return value in _NUMBER.findall(plain)
