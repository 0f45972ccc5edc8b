"""What results/published may hold: checked line by line on every reading, so that a file edited by hand is refused.

digests.json has a SHA-256 of the lines of every table in every file. The numbers are what the papers print; where one is wrong a
flag says so, and the number stays. After a change that is meant: `python -m fusionbench_lite.tables.published`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fusionbench_lite.errors import InputError, did_you_mean

COLUMNS = {
    "results.csv": (
        "paper", "table", "setting", "model", "num_tasks", "method", "method_as_printed", "variant", "column", "value", "unit",
        "metric", "family", "selection", "value_as_printed",
    ),
    "tables.csv": ("paper", "table", "title", "setting", "models", "tasks", "methods_count", "reproduce", "numbers"),
    "flags.csv": (
        "paper", "table", "setting", "method", "column", "kind", "printed", "recomputed_or_other", "note", "variant", "model",
        "num_tasks", "severity", "other_source", "origin", "found_by",
    ),
}
DIGESTS = "digests.json"
KEY = ("paper", "table", "setting", "model", "num_tasks", "method", "variant", "column", "metric")
PAPERS = ("doge", "adamerging", "metamerging", "adarank")
METRICS = {
    "percent": ("accuracy", "spearman", "mean_of_metrics", "accuracy_gain", "parameters"),
    "fraction": ("accuracy", "matthews", "mean_of_metrics"),
    "normalized": ("normalized_score", "parameters_relative_to_one_model"),
    "seconds": ("wall_clock",),
    "megabytes": ("gpu_memory",),
    "count": ("parameters", "num_train", "num_validation", "num_test", "num_classes"),
}
RANGES = {"percent": (0.0, 100.0), "fraction": (-1.0, 1.0)}
FAMILIES = ("", "ta", "tall", "ta_tall", "fusionbench", "mergelm", "released")
SELECTIONS = ("", "last", "best_test")
KINDS = (
    "average_mismatch", "duplicate_row", "shifted_columns", "implausible", "cross_paper_disagreement", "mislabelled",
    "impossible_fraction",
)
SEVERITIES = ("high", "medium", "low")
ORIGINS = ("given", "found")

Lines = Mapping[str, Sequence[Mapping[str, str]]]


def check(root: Path, lines: Lines) -> None:
    """Raise InputError with file, line and reason for what does not hold."""
    _results(root / "results.csv", lines["results.csv"])
    _tables(root / "tables.csv", lines)
    _flags(root / "flags.csv", lines)
    _digests(root, lines)


def _results(path: Path, lines: Sequence[Mapping[str, str]]) -> None:
    seen: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(lines, 2):
        where = f"{path}, line {number}"
        for field, known in (("paper", PAPERS), ("unit", tuple(METRICS)), ("family", FAMILIES), ("selection", SELECTIONS)):
            _known(where, field, line[field], known)
        _known(where, f"metric of {line['unit']}", line["metric"], METRICS[line["unit"]])
        try:
            value = float(line["value"])
        except ValueError:
            raise InputError(f"{where}: value {line['value']!r} is no number") from None
        low, high = RANGES.get(line["unit"], (0.0, math.inf))
        if not (math.isfinite(value) and low <= value <= high):
            raise InputError(f"{where}: value {line['value']} is outside {low:g} to {high:g}, the range of {line['unit']}")
        key = tuple(line[field] for field in KEY)
        if key in seen:
            raise InputError(f"{where}: the number of line {seen[key]} again ({', '.join(filter(None, key))})")
        seen[key] = number


def _tables(path: Path, lines: Lines) -> None:
    counts = Counter((line["paper"], line["table"]) for line in lines["results.csv"])
    for number, line in enumerate(lines["tables.csv"], 2):
        name = (line["paper"], line["table"])
        if str(counts.pop(name, 0)) != line["numbers"]:
            found = sum((other["paper"], other["table"]) == name for other in lines["results.csv"])
            raise InputError(f"{path}, line {number}: {'/'.join(name)} has {line['numbers']} numbers, results.csv has {found}")
    if counts:
        raise InputError(f"{path}: results.csv has numbers of {'/'.join(next(iter(counts)))}, which it does not list")


def _flags(path: Path, lines: Lines) -> None:
    places: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for result in lines["results.csv"]:
        places.setdefault((result["paper"], result["table"]), []).append(result)
    fields = ("setting", "method", "column", "variant", "model", "num_tasks")
    for number, line in enumerate(lines["flags.csv"], 2):
        where = f"{path}, line {number}"
        for field, known in (("kind", KINDS), ("severity", SEVERITIES), ("origin", ORIGINS)):
            _known(where, field, line[field], known)
        asked = [field for field in fields if line[field] not in ("*", "")]
        if not any(all(one[field] == line[field] for field in asked) for one in places.get((line["paper"], line["table"]), ())):
            raise InputError(f"{where}: no number of {line['paper']}/{line['table']} has {[line[field] for field in asked]}")


def _known(where: str, field: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{where}: {field} {value!r}: {did_you_mean(value, [one for one in known if one])}")


def digests(lines: Lines) -> dict[str, dict[str, str]]:
    """Return a SHA-256 of the lines of every table, by file."""
    found: dict[str, dict[str, str]] = {}
    for name, every in lines.items():
        tables: dict[str, hashlib._Hash] = {}
        for line in every:
            digest = tables.setdefault(f"{line['paper']}/{line['table']}", hashlib.sha256())
            digest.update("\x1f".join(line.values()).encode() + b"\x1e")
        found[name] = {table: digest.hexdigest()[:16] for table, digest in tables.items()}
    return found


def _digests(root: Path, lines: Lines) -> None:
    path = root / DIGESTS
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    for name, tables in digests(lines).items():
        for table, digest in tables.items():
            if known.get(name, {}).get(table) != digest:
                first = next(i for i, line in enumerate(lines[name], 2) if f"{line['paper']}/{line['table']}" == table)
                raise InputError(
                    f"{root / name}, from line {first}: the lines of {table} are not those of {DIGESTS}; take the change "
                    "back, or record it with python -m fusionbench_lite.tables.published"
                )
        if missing := set(known.get(name, {})) - set(tables):
            raise InputError(f"{root / name}: the lines of {sorted(missing)[0]} are gone")
