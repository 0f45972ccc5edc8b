"""One record in words, two of them compared setting by setting, records removed and moved."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import InputError
from fusionbench_lite.housekeeping.chosen import Found
from fusionbench_lite.housekeeping.pruning import removed
from fusionbench_lite.paths import file_sha256, locked
from fusionbench_lite.planning import recorded
from fusionbench_lite.planning.experiments.runs import NOTES
from fusionbench_lite.tables import records
from fusionbench_lite.tables.compare import compare
from fusionbench_lite.tables.records import Record
from fusionbench_lite.tables.rows import Row, Rows

ABSENT = "-"
_CHANGING = frozenset({
    "results_dir", "cache_dir", "overwrite", "experiment", "run", "plan", "scale", "logger", "device",
})
"""Keys of the configuration that decide no number."""


def show(record: Record, results_dir: Path) -> Iterator[str]:
    """Yield a record in words: what ran, what it scored, what a reader should know, and the line that makes it again."""
    data = record.data
    yield f"{record.path}"
    yield f"method {record.method}, model {record.model}, tasks={data['task_set']}, seed {record.seeds.get('seed')}"
    for name, setting in data["hyperparameters"].items():
        yield f"  {name} = {setting['value']}  ({setting['source']})"
    for rule, chosen in data["selections"].items():
        average = "" if chosen["average"] is None else f", average {_value(chosen['average'])}"
        yield f"select={rule}, step {chosen['step']}{average}{', uses test labels' if chosen['uses_test_labels'] else ''}"
        for task, cell in chosen["per_task"].items():
            low, high = cell["interval"]
            yield f"  {task}: {cell['metric']} {_value(cell['value'])} ({_value(low)} to {_value(high)}) of {cell['examples']:,}"
    yield f"checkpoints: {data['checkpoints']['family']}, {len(data['checkpoints']['files'])} files"
    yield f"seconds: {data['seconds'].get('total', 0):.1f} on {data.get('device_name', data['device'])}"
    for caveat in data.get("caveats", ()):
        yield f"caveat: {caveat}"
    if record.limit is not None:
        yield f"TRIAL: at most {record.limit} examples per task"
    line = recorded.command(data["config"], results_dir)
    if line is not None:
        yield line


def _value(value: float) -> str:
    return f"{value:.4f}"


# Comparing -----------------------------------------------------------------------------------------------------------


def differences(first: Record, second: Record) -> Iterator[tuple[str, str, str]]:
    """Yield every setting, file and version that differs: its name and both values, "-" for one that is not there."""
    sides = [_settings(record) for record in (first, second)]
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        values = [side.get(name, ABSENT) for side in sides]
        if values[0] != values[1]:
            yield name, str(values[0]), str(values[1])


def _settings(record: Record) -> dict[str, Any]:
    """Return what a record says of how it was made, flat, by dotted names."""
    data = record.data
    config = {key: value for key, value in data["config"].items() if key not in _CHANGING}
    given = {name: setting["value"] for name, setting in data["hyperparameters"].items()}
    known: dict[str, Any] = {"method": record.method, "model": record.model, "tasks": record.tasks}
    parts = (
        ("method.", given), ("", {key: value for key, value in config.items() if key not in ("method", "model", "tasks")}),
        ("model.", data["config"].get("model") or {}), ("files.", data["checkpoints"]["files"]),
        ("checkpoints found.", {name: data["checkpoints"].get(name) for name in ("family", "layout")}),
        ("data.", data["data"]), ("versions.", data["versions"]),
        ("", {"device": data.get("device_name", data["device"]), "precision": data.get("precision")}),
    )
    for prefix, values in parts:
        known |= dict(_flat(values, prefix))
    return known


def _flat(values: Mapping[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", value


def scores(first: Record, second: Record) -> Iterator[str]:
    """Yield the difference of scores, task by task, and that of the average with its paired interval; or why there is none."""
    names = [f"{record.method} {record.key}" for record in (first, second)]
    rows = tuple(Row(name, record.method, (record.key,)) for name, record in zip(names, (first, second), strict=True))
    try:
        found = compare(Rows("comparison", "", rows), [first, second], *names)
    except InputError as error:
        yield f"scores are not compared: {error}"
        return
    for task, (difference, *_) in found.per_task.items():
        values = [record.data["selections"]["last"]["per_task"][task]["value"] for record in (first, second)]
        yield f"  {task}: {_value(values[0])} and {_value(values[1])}, {difference:+.4f}"
    points, low, high = found.points
    yield f"average {found.measure.label}: {points:+.2f} ({low:+.2f} to {high:+.2f}, 95 % paired bootstrap over test examples)"


# Removing and moving -------------------------------------------------------------------------------------------------


def stranger(one: Found) -> str | None:
    """Return why a directory among the records is none of a run, and so is left alone; None for a record, a damaged one too."""
    if re.fullmatch("[0-9a-f]{16}", one.key):
        return None
    return "its name does not end in a key, and so it is no record of a run: remove it by hand"


@contextlib.contextmanager
def _unused(one: Found, results_dir: Path) -> Iterator[str | None]:
    """Hold the lock under which a run of this key writes, and yield None, or why it cannot be had now."""
    import filelock

    if (reason := stranger(one)) is not None:
        yield reason
        return
    lock = filelock.FileLock(results_dir / "partial" / f"{one.key}.lock")
    try:
        (results_dir / "partial").mkdir(exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield "a run of its key is at work"
        return
    except OSError as error:
        yield f"{error.filename}: {error.strerror}"
        return
    try:
        yield None
    finally:
        lock.release()


def delete(those: Sequence[Found], results_dir: Path) -> Iterator[tuple[Found, str | None]]:
    """Remove records, and notes that lead to them; yields each with the reason why it stays, None where it is gone."""
    gone = set()
    for one in those:
        with _unused(one, results_dir) as reason:
            reason = reason or removed(one.path)
        if reason is None:
            gone.add(one.key)
        yield one, reason
    _forget(results_dir, gone)


def _forget(results_dir: Path, keys: set[str]) -> None:
    """Remove the notes of runs whose records are gone."""
    for note in (results_dir / NOTES).glob("*.json") if keys else ():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(note.read_text(encoding="utf-8"))["key"] in keys:
                note.unlink(missing_ok=True)


def move(those: Sequence[Found], results_dir: Path, to: Path) -> Iterator[tuple[Found, str | None]]:
    """Move records and the notes that lead to them; yields each with the reason why it stays, None where it was moved.

    A record that is there already is taken for the same run: where its files are the same the one here is removed, else both stay.
    Between file systems a record is copied, compared file by file and then removed here.
    """
    if to.resolve() == results_dir.resolve():
        raise InputError(f"to={to} is the folder that records are moved from: give another")
    moved = set()
    for one in those:
        with _unused(one, results_dir) as reason, locked(to / "partial" / f"{one.key}.lock"):
            reason = reason or _move(one, to / "records" / one.path.name)
        if reason is None:
            moved.add(one.key)
        yield one, reason
    for note in (results_dir / NOTES).glob("*.json") if moved else ():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(note.read_text(encoding="utf-8"))["key"] in moved:
                (to / NOTES).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(note, to / NOTES / note.name)
                note.unlink(missing_ok=True)


def _move(one: Found, target: Path) -> str | None:
    if one.record is None:
        return f"it is no whole record: {one.flaw}"
    there = records.find(target.parent.parent, one.key)
    if there is not None:
        return removed(one.path) if _hashes(there.path) == _hashes(one.path) else f"{there.path} is another result of this run"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        one.path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            return error.strerror or str(error)
    else:
        return None
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name[:200]}.", suffix=".tmp", dir=target.parent))
    try:
        shutil.copytree(one.path, temporary / "copy", symlinks=True)
        if _hashes(temporary / "copy") != _hashes(one.path):
            return f"its copy in {target.parent} has other bytes: check that disk"
        (temporary / "copy").rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return removed(one.path)


def _hashes(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
