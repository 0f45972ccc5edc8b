"""An evaluation from the folder of a model to its record: what is refused first, what is there already, what runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.harness import folder as folders
from fusionbench_lite.harness import normalising, records, running, sets
from fusionbench_lite.harness.running import Settings
from fusionbench_lite.harness.sets import Set
from fusionbench_lite.paths import expanded, nearest_existing
from fusionbench_lite.tables.records import key as key_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is evaluated, against what, and where the record goes; `individual` is by set, "" for all others."""

    tasks: str
    settings: Settings
    individual: Mapping[str, str]
    task_dir: Path | None
    results_dir: Path
    out: Path | None
    cache: Path
    overwrite: bool = False


def evaluated(folder: Path, request: Request) -> tuple[dict[str, Any], Path]:
    """Return the record of an evaluation and its file: what is there already, else what the harness finds now.

    Raises InputError for all that can be known before the model is read: sets, references, the folder, the place of the record.
    """
    wanted, version = sets.asked(request.tasks), running.version()
    sets.confirm([one.name for one in wanted if one.unsafe], request.settings.unsafe_code)
    references = _references(request.individual, [one.name for one in wanted])
    folders.check(folder)
    task_files = folders.tasks_hash(request.task_dir)
    files = folders.hashes(folder, request.cache)
    model = {"folder": str(folder), "hash": folders.one_hash(files)}
    key = _key(model["hash"], wanted, request.settings, task_files, version)
    path = request.out or records.place(request.results_dir, key)
    record = None if request.overwrite else _before(path, key)
    if record is None:
        start = time.monotonic()
        scores, about = running.run(folder, wanted, request.settings, request.task_dir)
        record = {
            "kind": records.KIND, "schema_version": records.SCHEMA, "key": key, "model": {**model, **about, "files": files},
            "trial": request.settings.limit is not None, "settings": dataclasses.asdict(request.settings),
            "task_files": task_files, "sets": {name: dataclasses.asdict(score) for name, score in scores.items()},
            "versions": records.versions(), "seconds": round(time.monotonic() - start, 3),
        }
        records.write(path, record)
    if references:
        record = {**record, "relative": normalising.relative(record, references)}
        records.write(path, record)
    return record, path


def _key(model: str, wanted: Sequence[Set], settings: Settings, task_files: Mapping[str, str], version: str) -> str:
    """Return the key of a record: what decides its numbers. Batch and device are left out, which decide rounding alone."""
    decides = ("shots", "limit", "dtype", "chat_template", "seed")
    named = [[one.name, one.task, one.metric, one.filter] for one in wanted]
    return key_of({
        "schema": records.SCHEMA, "model": model, "sets": named, "settings": {name: getattr(settings, name) for name in decides},
        "task_files": dict(task_files), "lm_eval": version,
    })  # fmt: skip


def _before(path: Path, key: str) -> dict[str, Any] | None:
    """Return the record that is there, if any. Raises InputError for a place that cannot have one, or has that of another run."""
    if path.is_dir() or not nearest_existing(path.parent).is_dir():
        raise InputError(f"{path} is no place for a file: choose another with out=FILE")
    if not path.is_file():
        return None
    record = records.read(path)
    if record["key"] != key:
        raise InputError(f"{path} is of another evaluation, of {record['model']['folder']}: choose another out, or overwrite=true")
    return record


def _references(individual: Mapping[str, str], names: Sequence[str]) -> dict[str, normalising.Individual]:
    """Return the references by set, records read. Raises InputError for one by which no set can be divided."""
    found: dict[str, normalising.Individual] = {}
    unknown = next((name for name in individual if name and name not in names), None)
    if unknown is not None:
        raise InputError(f"individual.{unknown}: {unknown!r} is not evaluated: {did_you_mean(unknown, names)}")
    for name in names:
        given = individual.get(name, individual.get(""))
        if given is not None:
            found[name] = None if given == normalising.PUBLISHED else records.read(expanded(given))
            normalising.check(name, found[name])
    return found
