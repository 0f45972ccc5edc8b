"""The records of a results folder that a filter takes, read from their result.json alone."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.tables import schema
from fusionbench_lite.tables.migrations import migrated
from fusionbench_lite.tables.records import RESULT, SAMPLES, Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filter:
    """Patterns (as a shell's, `*` and `?`) that a record's key, method, model, tasks (label or names) and seed fit; None takes all.
    `older`: written so many seconds ago."""

    key: str | None = None
    method: str | None = None
    model: str | None = None
    tasks: str | None = None
    seed: str | None = None
    older: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it takes every record."""
        return all(getattr(self, field.name) is None for field in dataclasses.fields(self))

    def takes(self, found: Found) -> bool:
        """Say whether a record fits all patterns; one that cannot be read fits by its key and age alone."""
        if self.key is not None and not fnmatch.fnmatchcase(found.key, f"{self.key}*"):
            return False
        if self.older is not None and time.time() - found.written < self.older:
            return False
        if found.record is None:
            return (self.method, self.model, self.tasks, self.seed) == (None,) * 4
        record = found.record
        tasks = (str(record.data["task_set"]), "+".join(record.tasks))
        pairs = (
            (self.method, (record.method,)), (self.model, (record.model,)), (self.tasks, tasks),
            (self.seed, (str(record.seeds.get("seed")),)),
        )
        return all(
            pattern is None or any(fnmatch.fnmatchcase(text, pattern) for text in texts) for pattern, texts in pairs
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A directory among the records: its `record`, or `flaw`, why it is none. `written` is when its result was, in seconds."""

    path: Path
    record: Record | None
    flaw: str
    nbytes: int
    written: float

    @property
    def key(self) -> str:
        """What its name ends in: 16 hex digits of a record."""
        return self.path.name.rpartition("-")[2]


def everything(results_dir: Path) -> Iterator[Found]:
    """Yield what lies among the records, unfinished directories left out. Raises InputError where there are no records."""
    root = results_dir / "records"
    if not root.is_dir():
        raise InputError(f"results_dir={results_dir} holds no records/: give the results_dir of a run")
    for path in sorted(root.glob("[!.]*")):
        if path.is_dir():
            yield found(path)


def found(path: Path) -> Found:
    """Return what a directory is; samples.npz is not opened."""
    statuses = [file.stat() for file in path.rglob("*") if file.is_file()]
    record, flaw = None, ""
    try:
        data = migrated(json.loads((path / RESULT).read_text(encoding="utf-8")), path)
        schema.check(data)
        if data["key"] != path.name.rpartition("-")[2]:
            raise InputError(f"its key is {data['key']}, its directory says {path.name.rpartition('-')[2]}")
        if not (path / SAMPLES).is_file():
            raise InputError(f"{SAMPLES} is missing")
        record = Record(path, data)
    except FileNotFoundError:
        flaw = f"{RESULT} is missing"
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:  # JSON of any other form
        flaw = (str(error) or type(error).__name__).splitlines()[0]
    return Found(
        path=path, record=record, flaw=flaw, nbytes=sum(one.st_size for one in statuses),
        written=max((one.st_mtime for one in statuses), default=0.0),
    )


def taken(results_dir: Path, wanted: Filter) -> list[Found]:
    """Return what a filter takes."""
    return [one for one in everything(results_dir) if wanted.takes(one)]


def by_name(results_dir: Path, name: str) -> Found:
    """Return the record of a directory, a key or its beginning. Raises InputError where there is none, or more than one."""
    path = Path(name)
    if (path / RESULT).is_file():
        return found(path)
    every = list(everything(results_dir))
    those = [one for one in every if one.key.startswith(name) or one.path.name == name]
    if len(those) == 1:
        return those[0]
    if those:
        raise InputError(f"{name!r} begins the keys of {len(those)} records: {_few([one.path.name for one in those])}")
    raise InputError(f"no record in {results_dir} has the key {name!r}: {did_you_mean(name, [one.key for one in every])}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
