"""One run of an experiment, known by its overrides before anything is loaded, and the note that leads to its record.

    <results_dir>/runs/<id>.json    {"overrides": [...], "key": the record's, "rules": what presets and settings were then}

A run's record is known by a key of everything that decides its numbers, data and weights among it; finding that takes loading
them. Tables are made without, so a run that ends leaves a note under the name of its overrides.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from fusionbench_lite.base.version import __version__
from fusionbench_lite.paths import atomic_file, config_dir
from fusionbench_lite.planning.arguments import unquoted

NOTES = "runs"
_UNDECIDING = frozenset({
    "experiment", "scale", "plan", "run", "results_dir", "cache_dir", "data_dir", "device", "overwrite", "select", "logger",
    "checkpoints.dir", "checkpoints.place", "trainer", "trainer.devices", "trainer.checkpoint_every", "trainer.eval_batch",
})
"""Keys that do not decide a number; `select` chooses among those that a record holds."""
_UNDECIDING_SECTIONS = ("logger.", "hydra.", "hydra/")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run by the overrides that decide its numbers, (key, value) in order of keys, its seed among them."""

    overrides: tuple[tuple[str, str], ...]

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of its overrides."""
        return hashlib.sha256(json.dumps(self.overrides, ensure_ascii=True).encode()).hexdigest()[:16]

    @property
    def arguments(self) -> list[str]:
        """The overrides as a command line gives them."""
        heads = ("method", "model", "checkpoints")  # groups before what changes them
        ordered = sorted(self.overrides, key=lambda entry: (entry[0] not in heads, entry[0]))
        return [f"{key}={value}" for key, value in ordered]

    @property
    def values(self) -> dict[str, str]:
        """The overrides by key."""
        return dict(self.overrides)


def run_of(overrides: Iterable[str]) -> Run:
    """Return the run of overrides KEY=VALUE, of which a later one of the same key wins."""
    merged: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        merged.pop(key, None)
        inner = unquoted(value)
        merged[key] = value if inner is None else inner
    kept = {key: value for key, value in merged.items() if decides(key)}
    return Run(tuple(sorted(kept.items())))


def decides(key: str) -> bool:
    """Say whether a key decides numbers."""
    return key not in _UNDECIDING and not key.startswith(_UNDECIDING_SECTIONS)


@functools.cache
def rules() -> str:
    """Return what tells apart the presets and settings of one state of the package from those of another."""
    digest = hashlib.sha256(__version__.encode())
    root = config_dir()
    for path in sorted(root.rglob("*.yaml")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Note:
    """Where the record of a run is: its key, and whether presets and settings are still those it was made under."""

    key: str
    current: bool


def write_note(results_dir: Path, run: Run, key: str) -> None:
    """Leave the note of a finished run, atomically."""
    path = results_dir / NOTES / f"{run.id}.json"
    content = {"overrides": run.arguments, "key": key, "rules": rules()}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def forget(results_dir: Path, runs: Iterable[Run]) -> None:
    """Remove the notes of runs that are to be made anew."""
    for run in runs:
        (results_dir / NOTES / f"{run.id}.json").unlink(missing_ok=True)


def notes(results_dir: Path, runs: Iterable[Run]) -> Mapping[Run, Note]:
    """Return the notes that there are of these runs; one that cannot be read is none."""
    folder = results_dir / NOTES
    there = {path.stem for path in folder.glob("*.json")} if folder.is_dir() else set()
    found: dict[Run, Note] = {}
    for run in dict.fromkeys(runs):
        if run.id not in there:
            continue
        try:
            content = json.loads((folder / f"{run.id}.json").read_text(encoding="utf-8"))
            found[run] = Note(str(content["key"]), content["rules"] == rules())
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
