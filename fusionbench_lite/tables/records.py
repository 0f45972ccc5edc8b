"""Records: one directory per finished run, found by its content, written whole or not at all.

    <results_dir>/records/<method>-<model>-<tasks label>-<key>/
        result.json     everything about the run (checked by `schema.check`, read in its version or an earlier one)
        samples.npz     <selection>/<task>/predictions [N] and <selection>/<task>/correct bool [N]; for a metric of the
                        whole set <selection>/<task>/labels [N] in place of correctness
        ...             what else the run leaves: history.csv and learned.safetensors of adaptive methods

A reader takes nothing on trust: a directory whose name, result.json and samples.npz do not agree is no record.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.measures import Measure, measure_of
from fusionbench_lite.paths import atomic_directory
from fusionbench_lite.tables import schema
from fusionbench_lite.tables.migrations import NewerVersion, OtherVersion, migrated

RESULT, SAMPLES = "result.json", "samples.npz"
_DIRECTORY = re.compile(r"[^.].*-([0-9a-f]{16})")
_MOMENT = 0.05
"""Seconds in which a record that is replaced is there again."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """A finished run: its directory and the content of its result.json (`data`)."""

    path: Path
    data: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.data["key"])

    @property
    def method(self) -> str:
        return str(self.data["method"])

    @property
    def model(self) -> str:
        return str(self.data["model"])

    @property
    def tasks(self) -> list[str]:
        return list(self.data["tasks"])

    @property
    def seeds(self) -> dict[str, int]:
        return dict(self.data["seeds"])

    @property
    def limit(self) -> int | None:
        """Examples per task the run was limited to, or None. A limited run is a trial and enters no paper table."""
        limit: int | None = self.data["limit"]
        return limit

    @property
    def adapted(self) -> bool:
        """Whether the run took adaptation steps, by what it recorded."""
        selections = self.data["selections"]
        return any(name != "last" or chosen["step"] > 0 for name, chosen in selections.items())

    def selection(self, name: str) -> tuple[str, dict[str, Any]]:
        """The results under a selection rule, and the rule they really follow.

        A data-free run has nothing to select and knows only "last"; that is what it answers whatever is asked.
        """
        selections: dict[str, dict[str, Any]] = self.data["selections"]
        rule = name if name in selections else "last"
        return rule, selections[rule]

    @contextlib.contextmanager
    def _samples(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Yield the arrays of samples.npz. Raises InputError where the record has gone since it was read."""
        try:
            with np.load(self.path / SAMPLES) as samples:
                yield samples
        except FileNotFoundError:
            raise InputError(f"{self.path} was removed while it was read: run its experiment again") from None

    def measures(self) -> dict[str, Measure]:
        """Name, unit and direction of every task's metric."""
        return {task: measure_of(cell) for task, cell in self.data["selections"]["last"]["per_task"].items()}

    def correct(self, selection: str) -> dict[str, NDArray[np.bool_]]:
        """Per task, whether each test example was answered correctly: bool [N], in the order of the test split.

        Tasks that are judged by a metric of the whole set are left out.
        """
        used, chosen = self.selection(selection)
        with self._samples() as samples:
            return {t: samples[f"{used}/{t}/correct"] for t in self.tasks if schema.per_example(chosen["per_task"][t])}

    def answers(self, selection: str) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
        """Predictions and labels [N] of the tasks that are judged by a metric of the whole set."""
        used, chosen = self.selection(selection)
        tasks = [task for task in self.tasks if not schema.per_example(chosen["per_task"][task])]
        with self._samples() as samples:
            return {t: (samples[f"{used}/{t}/predictions"], samples[f"{used}/{t}/labels"]) for t in tasks}


def key(identity: Mapping[str, Any]) -> str:
    """Name the content that determines a result: the first 16 hex digits of the SHA-256 of its canonical JSON.

    Canonical: keys sorted, no spaces, ASCII; the order of keys does not matter, 1 and 1.0 differ.
    Raises InputError for what JSON cannot hold (nan, infinities, objects).
    """
    try:
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(f"a record's identity must be plain JSON: {error}") from None
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def directory(results_dir: str | Path, data: Mapping[str, Any]) -> Path:
    """Where the record of `data` (method, model, task_set, key) lives."""
    label = "-".join(re.sub(r"[^A-Za-z0-9_+.]+", "_", str(data[part])) for part in ("method", "model", "task_set"))
    return Path(results_dir) / "records" / f"{label[:120]}-{data['key']}"


def write(
    results_dir: str | Path,
    record: Mapping[str, Any],
    samples: Mapping[str, Any],
    extra_files: Mapping[str, Callable[[Path], None]] | None = None,
) -> Path:
    """Write a record atomically and return its directory; an existing record of the same key is replaced.

    samples: arrays named <selection>/<task>/predictions|correct|labels, nested in any way ({"last": {"digits": {...}}}).
    extra_files: {file name: function that writes it to the path it is given}.
    Raises InputError when the record breaks the schema, when its samples contradict it, or when the disk refuses.
    """
    data = json.loads(_dump(record))
    arrays = dict(_flatten(samples))
    schema.check(data)
    schema.check_samples(data, arrays)
    final = directory(results_dir, data)
    try:
        with atomic_directory(final) as temporary:
            with (temporary / SAMPLES).open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            for name, write_file in (extra_files or {}).items():
                write_file(temporary / name)
            (temporary / RESULT).write_text(_dump(data) + "\n", encoding="utf-8")
    except InputError as error:
        # Another process may have finished the same run in between: its record is as good as this one.
        if getattr(error.__cause__, "errno", None) in (errno.ENOTEMPTY, errno.EEXIST) and find(results_dir, data["key"]):
            return final
        raise
    return final


def read(path: str | Path) -> Record:
    """Read one record, of this version of the schema or an earlier one.

    Raises InputError, in one line, when the directory is not a complete and consistent record.
    """
    path = Path(path)
    named = _DIRECTORY.fullmatch(path.name)
    if named is None:
        raise InputError(f"{path}: not a record: its name does not end in -<16 hex digits>")
    try:
        try:
            data = _content(path, named[1])
        except FileNotFoundError:
            time.sleep(_MOMENT)  # another process may be putting a new record in its place
            data = _content(path, named[1])
    except OtherVersion:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = f"{Path(error.filename).name} is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{path}: not a complete record, ignored: {reason.splitlines()[0]}") from None
    return Record(path, data)


def _content(path: Path, key: str) -> dict[str, Any]:
    """Return the content of result.json after checking that everything of the record agrees."""
    data: dict[str, Any] = migrated(json.loads((path / RESULT).read_text(encoding="utf-8")), path)
    schema.check(data)
    if data["key"] != key:
        raise InputError(f"its key is {data['key']}, its directory says {key}")
    with zipfile.ZipFile(path / SAMPLES) as archive:
        broken = archive.testzip()  # every byte against its checksum: np.load alone would find a flaw only later
    if broken is not None:
        raise InputError(f"{SAMPLES}: {broken} is damaged")
    with np.load(path / SAMPLES) as samples:
        schema.check_samples(data, samples)
    return data


def read_all(results_dir: str | Path, *, skipped: list[str] | None = None) -> list[Record]:
    """All complete records, sorted by directory name. Broken ones are left out, never raised.

    Each broken one adds a line to `skipped`, or is logged as a warning when no list is given. Unfinished directories
    (temporary names, which start with a dot) are no records and no news.
    """
    root = Path(results_dir) / "records"
    return list(_readable(sorted(root.glob("[!.]*")) if root.is_dir() else [], skipped))


def find(results_dir: str | Path, key: str) -> Record | None:
    """The complete record of a key, or None."""
    root = Path(results_dir) / "records"
    if not re.fullmatch(r"[0-9a-f]{16}", key) or not root.is_dir():
        return None
    return next(_readable(sorted(root.glob(f"[!.]*-{key}")), None), None)


def check_replaceable(results_dir: str | Path, key: str) -> None:
    """Raise InputError where the record of a key is of a newer version of the package, which a run would replace by an older."""
    for path in sorted((Path(results_dir) / "records").glob(f"[!.]*-{key}")):
        try:
            read(path)
        except NewerVersion:
            raise
        except InputError:
            continue


def _readable(paths: list[Path], skipped: list[str] | None) -> Iterator[Record]:
    for path in paths:
        if not path.is_dir():
            continue
        try:
            yield read(path)
        except InputError as error:
            if skipped is None:
                _log.warning("%s", error)
            else:
                skipped.append(str(error))


def _dump(data: Mapping[str, Any]) -> str:
    try:
        return json.dumps(data, indent=1, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(f"a record must be plain JSON with finite numbers: {error}") from None


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's, paths as text; what is neither is refused."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} is not JSON")


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", np.asarray(value)
