"""What lies in a cache, by kind: its size, and when it was last used."""

from __future__ import annotations

import dataclasses
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from fusionbench_lite.base import at_work

FILES, FOLDERS, BELOW = "files", "folders", "folders below folders"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A folder of a cache: what its entries are, and how they lie in it (FILES, FOLDERS or BELOW).

    `again` says how an entry comes back that was removed. `open_late`: a run may open files of an entry long after it looked at
    them; those of the others are read whole, or made again where they are missing.
    """

    name: str
    folder: str
    what: str
    lie: str
    again: str
    open_late: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="experts", folder="zoo", what="experts of embedded models, MiniLM and own files", lie=FOLDERS,
             again="trained", open_late=True),
        Kind(name="finetuned", folder="finetuned", what="experts that finetune made", lie=FOLDERS, again="trained by finetune",
             open_late=True),
        Kind(name="downloads", folder="hub", what="repositories of the hub", lie=FOLDERS, again="downloaded", open_late=True),
        Kind(name="archives", folder="archives", what="archives of other servers and what was unpacked", lie=FOLDERS,
             again="downloaded", open_late=True),
        Kind(name="converted", folder="checkpoints", what="experts and base models in one layout", lie=BELOW, again="converted",
             open_late=True),
        Kind(name="hashes", folder="checkpoints/hashes", what="hashes of users' files", lie=FILES, again="computed"),
        Kind(name="heads", folder="heads", what="heads made from prompts", lie=FILES, again="computed"),
        Kind(name="images", folder="images", what="decoded images, encoded training images", lie=FOLDERS, again="decoded",
             open_late=True),
        Kind(name="data", folder="data", what="drawn tasks", lie=FILES, again="drawn"),
        Kind(name="text", folder="text", what="token ids", lie=FILES, again="tokenised"),
        Kind(name="statistics", folder="statistics", what="Fisher, Gram and gradients", lie=FILES, again="computed"),
        Kind(name="decompositions", folder="decompositions", what="singular components and Gram matrices", lie=FILES,
             again="computed"),
        Kind(name="rates", folder="rates", what="measured rates of devices", lie=FILES, again="measured"),
        Kind(name="scratch", folder="scratch", what="task vectors that did not fit into memory", lie=FILES, again="computed",
             open_late=True),
    )
}
LEFT = "leftovers"
"""Kind of what an interrupted process left under a temporary name."""
_TEMPORARY = (".tmp", ".unfinished")
_LIBRARY = ".tmp"
"""How the temporary names begin under which safetensors writes, beside the file that it is to become."""
_BESIDE = (".locks", ".partial", ".verified")
"""Folders of the hub's cache that are no entries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What can be removed by itself: a file or a folder of a cache. `kind` is the name of one of KINDS, or LEFT; `used` is when it
    was last read or written, in seconds."""

    kind: str
    path: Path
    nbytes: int
    used: float

    @property
    def lock(self) -> Path:
        """The file that whoever makes the entry holds."""
        return self.path.with_suffix(".lock")


def entries(cache: Path) -> Iterator[Entry]:
    """Yield what lies in the known folders of a cache, leftovers among it. Locks are none: another process may wait for one."""
    for kind in KINDS.values():
        folder = cache / kind.folder
        if folder.is_symlink() or not folder.is_dir():
            continue
        yield from _of_folder(kind, folder)


def _of_folder(kind: Kind, folder: Path) -> Iterator[Entry]:
    for path in _listed(folder):
        is_folder = path.is_dir() and not path.is_symlink()
        if path.suffix == ".lock" or path.name in _BESIDE:
            continue
        if path.name.startswith(_LIBRARY) or (path.name.startswith(".") and path.name.endswith(_TEMPORARY)):
            yield _entry(LEFT, path)
        elif kind.lie == BELOW and is_folder:
            if path.name != "hashes":  # a kind of its own
                yield from _of_folder(dataclasses.replace(kind, lie=FOLDERS), path)
        elif is_folder == (kind.lie == FOLDERS):
            yield _entry(kind.name, path)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # another process removed it
        return []


def _entry(kind: str, path: Path) -> Entry:
    nbytes, used = 0, 0.0
    for status in _statuses(path):
        if stat.S_ISDIR(status.st_mode):  # looking into a folder is no use of it, and a new one is empty at first
            used = max(used, status.st_mtime)
        else:
            nbytes, used = nbytes + status.st_size, max(used, status.st_atime, status.st_mtime)
    return Entry(kind=kind, path=path, nbytes=nbytes, used=used)


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Yield what the file system says of every file and folder of an entry; links say nothing, and are not followed."""
    try:
        status = path.lstat()
    except OSError:
        return
    if stat.S_ISDIR(status.st_mode):
        for inner in _listed(path):
            yield from _statuses(inner)
    if not stat.S_ISLNK(status.st_mode):
        yield status


def looked_at_again(entry: Entry) -> Entry:
    """Return an entry with the size and the last use that it has now."""
    return _entry(entry.kind, entry.path)


def unknown(cache: Path) -> list[Path]:
    """Return what lies in a cache folder and is none of its kinds: it is never removed."""
    ours = {Path(kind.folder).parts[0] for kind in KINDS.values()} | {at_work.FOLDER}
    return [path for path in _listed(cache) if path.name not in ours] if cache.is_dir() else []


def ago(seconds: float, now: float | None = None) -> str:
    """Return how long ago a time was."""
    passed = (time.time() if now is None else now) - seconds
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if passed >= 2 * length:
            return f"{passed / length:.0f} {unit} ago"
    return "just now"
