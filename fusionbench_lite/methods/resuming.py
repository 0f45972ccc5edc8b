"""What a merge into files has finished, kept beside its files, so that a killed one continues with the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from fusionbench_lite.base.version import __version__
from fusionbench_lite.errors import MergeError, MergeWarning
from fusionbench_lite.lazy import torch
from fusionbench_lite.paths import atomic_directory, unfinished
from fusionbench_lite.weights.shards import Layout
from fusionbench_lite.weights.stored.elsewhere import ADAPTER_CONFIG
from fusionbench_lite.weights.stored.folders import describe
from fusionbench_lite.weights.stored.headers import header_of
from fusionbench_lite.weights.stored.indexes import SUFFIX

STATE, JOURNAL, LOCK = "merge.state.json", "merge.journal.jsonl", "merge.lock"

Identity = Mapping[str, Any]


def identity_of(decisive: Mapping[str, Any], sources: Mapping[str, Any]) -> Identity | None:
    """Return all that decides the bits of a merge, as JSON holds it: what is given, the inputs' files, versions and processor.

    `sources` are the inputs by their names in messages. None where one of them is not a path: memory cannot be known again.
    """
    if not all(isinstance(source, (str, os.PathLike)) for source in sources.values()):
        return None
    machine = {
        "fusionbench_lite": __version__, "torch": str(torch.__version__), "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
    files = {who: _files(source) for who, source in sources.items()}
    whole = {**decisive, "order of the inputs": list(sources), **files, "version or processor": machine}
    read: Identity = json.loads(json.dumps(whole, default=str))
    return read


def _files(source: str | os.PathLike[str]) -> list[list[Any]]:
    """Return name, size, time of the last change and a SHA-256 of every file of an input: of headers, or of small files."""
    found = describe(source)
    small = [found.index] if found.index is not None else [found.folder / ADAPTER_CONFIG] if found.kind == "adapter" else []
    return [[file.name, (stat := file.stat()).st_size, stat.st_mtime_ns, _sha256(file)] for file in (*found.files, *small)]


def _sha256(file: Path) -> str:
    if file.suffix != SUFFIX:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    with file.open("rb") as opened:
        return hashlib.sha256(header_of(opened)).hexdigest()


@dataclasses.dataclass
class Journal:
    """Of an unfinished merge: `finished`, the checksums of tensors that are in their files, and `notes` of the method."""

    identity: Identity | None
    finished: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    _file: IO[str] | None = None
    _noted: int = 0

    @classmethod
    def of(cls, final: Path, identity: Identity | None, layout: Layout) -> Journal:
        """Return that of an earlier, interrupted merge into `final` with this identity, else an empty one.

        What is not in the files with its checksum is not finished. Warns where there was another merge, which is lost.
        """
        folder = unfinished(final)
        if identity is None or not (folder / STATE).is_file():
            return cls(identity)
        found = _json((folder / STATE).read_text(encoding="utf-8"))
        if found != identity:
            warnings.warn(f"{_differing(found, identity)} changed: the interrupted merge into {final} starts over",
                          MergeWarning, stacklevel=4)
            return cls(identity)
        journal = cls(identity)
        lines = (folder / JOURNAL).read_text(encoding="utf-8").splitlines() if (folder / JOURNAL).is_file() else []
        for line in lines:
            entry = _json(line)  # the last one may be half a line
            if isinstance(entry, dict):
                journal.notes |= entry.get("notes", {})
                journal.finished |= entry.get("finished", {})
        with contextlib.suppress(OSError):  # files that are gone
            journal.finished = {
                name: crc for name, crc in journal.finished.items()
                if name in layout.places and layout.checksum(folder, name) == crc
            }
            return journal
        return cls(identity)

    def record(self, name: str, crc: int) -> None:
        """Take down that a tensor is in its file, and what was noted before."""
        self.finished[name] = crc
        if self._file is not None:
            entry: dict[str, Any] = {"finished": {name: crc}}
            if len(self.notes) > self._noted:
                new = list(self.notes.items())[self._noted :]
                self._noted += len(new)
                entry = {"notes": dict(new), **entry}
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    @contextlib.contextmanager
    def directory(self, final: Path, layout: Layout) -> Iterator[Path]:
        """Yield the directory that becomes `final`, as `paths.atomic_directory` does, with the files of the layout made.

        Raises MergeError where another process is at work in it.
        """
        with atomic_directory(final, resumable=self.identity is not None) as temporary:
            if self.identity is None:
                layout.create(temporary)
                yield temporary
                return
            with _claimed(temporary, final):
                if not self.finished:
                    _clear(temporary)
                layout.create(temporary)
                self._open(temporary)
                try:
                    yield temporary
                finally:
                    assert self._file is not None
                    self._file.close()
                for name in (JOURNAL, STATE):
                    (temporary / name).unlink()

    def _open(self, folder: Path) -> None:
        """Write what is known so far, and go on from there."""
        (folder / STATE).write_text(json.dumps(self.identity, indent=1) + "\n", encoding="utf-8")
        beside = folder / f"{JOURNAL}.new"
        beside.write_text(json.dumps({"notes": self.notes, "finished": self.finished}) + "\n", encoding="utf-8")
        beside.replace(folder / JOURNAL)
        self._noted = len(self.notes)
        self._file = (folder / JOURNAL).open("a", encoding="utf-8")


@contextlib.contextmanager
def _claimed(folder: Path, final: Path) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise MergeError(f"another process is merging into {final}: wait for it, or give another directory") from None
    try:
        yield
        (folder / LOCK).unlink(missing_ok=True)
    finally:
        lock.release()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _differing(found: Any, identity: Identity) -> str:
    """Return what two merges differ in, in words."""
    if not isinstance(found, dict):
        return "its state is damaged and"
    names = [name for name in {**found, **identity} if found.get(name) != identity.get(name)]
    return ", ".join(names)
