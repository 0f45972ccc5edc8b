"""Which records make a table: the manifest `<results_dir>/tables/<experiment>/rows.json` a finished experiment leaves."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.paths import atomic_file, experiments_dir, locked
from fusionbench_lite.tables import records
from fusionbench_lite.tables.records import Record

MANIFEST = "rows.json"


@dataclass(frozen=True)
class Row:
    """One line of a table: its label, the method's id, and the keys of its records, one per seed."""

    name: str
    method: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """The lines of a table in their order, with the experiment they answer."""

    experiment: str
    title: str
    rows: tuple[Row, ...]
    question: str = ""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"experiment {self.experiment}: two rows are called '{twice}'; give each its own name")

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for row in self.rows for key in row.keys)


def table_dir(results_dir: str | Path, experiment: str) -> Path:
    """The directory of an experiment's manifest and tables."""
    return Path(results_dir) / "tables" / experiment


@contextlib.contextmanager
def held(results_dir: str | Path, experiment: str) -> Iterator[None]:
    """Within the block no other process reads the records of an experiment and writes its table: the one that writes last has seen
    what all of them recorded, and its files are of one table."""
    with locked(Path(results_dir) / "partial" / f"table-{experiment.replace('/', '-')}.lock"):
        yield


def write_rows(results_dir: str | Path, rows: Rows) -> Path:
    """Write the manifest of an experiment atomically; returns its path."""
    path = table_dir(results_dir, rows.experiment) / MANIFEST
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(rows), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_rows(results_dir: str | Path, experiment: str) -> Rows:
    """Read the manifest of an experiment. Raises InputError with the nearest name, or with the command to run first."""
    path = table_dir(results_dir, experiment) / MANIFEST
    if not path.is_file():
        raise InputError(_absent(results_dir, experiment))
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        lines = tuple(Row(row["name"], row["method"], tuple(row["keys"])) for row in data["rows"])
        return Rows(data["experiment"], data["title"], lines, data.get("question") or "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a list of rows ({reason}); run the experiment again to rewrite it") from None


def experiments(results_dir: str | Path) -> list[str]:
    """The experiments that have a manifest under results_dir."""
    root = Path(results_dir) / "tables"
    return sorted(str(path.parent.relative_to(root).as_posix()) for path in root.rglob(MANIFEST))


def load_records(results_dir: str | Path, rows: Rows) -> list[Record]:
    """The complete records of a manifest; those that are missing are left out (`frame.build` says which)."""
    looked_up = (records.find(results_dir, key) for key in dict.fromkeys(rows.keys))
    return [record for record in looked_up if record is not None]


def _absent(results_dir: str | Path, experiment: str) -> str:
    ready, shipped = experiments(results_dir), _shipped_experiments()
    if experiment in shipped:
        return (
            f"experiment '{experiment}' has no finished runs in {Path(results_dir)}; "
            f"run python -m fusionbench_lite experiment={experiment} results_dir={Path(results_dir)} first"
        )
    return f"unknown experiment '{experiment}': {did_you_mean(experiment, {*ready, *shipped})}"


def _shipped_experiments() -> set[str]:
    try:
        root = experiments_dir()
    except InputError:
        return set()
    return {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")}
