"""Which entries of a cache go, and how they are removed beside running jobs.

An entry is kept while somebody makes it, and where a process that is at work may open its files late: one that was used since that
process began, or may have been. File systems note reading once a day (relatime) or never (noatime).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from fusionbench_lite.base import at_work
from fusionbench_lite.housekeeping.entries import KINDS, LEFT, Entry, looked_at_again

DAY = 86400.0
RECENT = 600.0
"""Seconds for which an entry that was just used is kept, for processes that do not say that they are at work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to go: entries of these kinds, all where none is named, unused for `older` seconds, of at least `larger` bytes; with
    `keep` so many that the rest takes no more bytes, the longest unused first."""

    kinds: tuple[str, ...] = ()
    older: float | None = None
    larger: int | None = None
    keep: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """What may not go now: entries used after `recent`; of kinds whose files are opened late, those used after `at_work`.

    `at_work` is None where no process is, and -inf where the file system does not note when files are read.
    """

    recent: float
    at_work: float | None

    def keeps(self, entry: Entry) -> str | None:
        """Return why an entry is kept, None where it may go."""
        if entry.used > self.recent:
            return "used just now"
        late = entry.kind == LEFT or KINDS[entry.kind].open_late
        if self.at_work is not None and late and entry.used > self.at_work:
            return "a process at work may use it"
        return None


def guard(cache: Path) -> Guard:
    """Return what is kept in a cache now."""
    since, now = at_work.since(cache), time.time()
    if since is None:
        return Guard(recent=now - RECENT, at_work=None)
    return Guard(recent=now - RECENT, at_work=since - DAY if notes_reading(cache) else float("-inf"))


def notes_reading(folder: Path) -> bool:
    """Say whether the file system of a folder notes when a file was read."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=folder, prefix=".reading.", suffix=".tmp") as own:
        probe = Path(own) / "probe"
        probe.write_bytes(b"0")
        before = time.time() - 3 * DAY
        os.utime(probe, (before, before))
        probe.read_bytes()
        return probe.stat().st_atime > before + DAY
    return False


def chosen(found: Iterable[Entry], wish: Wish, now: float) -> list[Entry]:
    """Return the entries that a wish is about, the longest unused first."""
    some = [entry for entry in found if not wish.kinds or entry.kind in wish.kinds]
    ordered = sorted(some, key=lambda entry: (entry.used, str(entry.path)))
    taken = [
        entry for entry in ordered
        if (wish.older is None or now - entry.used >= wish.older) and (wish.larger is None or entry.nbytes >= wish.larger)
    ]
    if wish.keep is None:
        return taken
    excess, first = sum(entry.nbytes for entry in some) - wish.keep, []
    for entry in taken:
        if excess <= 0:
            break
        first.append(entry)
        excess -= entry.nbytes
    return first


def remove(those: Iterable[Entry], guarded: Guard) -> Iterator[tuple[Entry, str | None]]:
    """Remove entries and yield each with the reason why it was kept, None where it is gone.

    An entry is looked at again before, since verifying a cache can take hours in which it was used or made anew. It is renamed
    first, so that it is there whole or not at all whenever another process looks.
    """
    for entry in those:
        reason = guarded.keeps(looked_at_again(entry))
        yield entry, reason if reason is not None else _remove(entry)


def _remove(entry: Entry) -> str | None:
    import filelock

    with contextlib.ExitStack() as stack:
        if entry.lock.exists():
            lock = filelock.FileLock(entry.lock)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                return "another process makes it"
            except OSError as error:
                return f"its lock: {error.strerror}"
            stack.callback(lock.release)
        return removed(entry.path)


def removed(path: Path) -> str | None:
    """Remove a file or a folder, whole to everybody who looks; return why that could not be, None where it is gone."""
    try:
        away = Path(tempfile.mkdtemp(prefix=f".{path.name[:200]}.", suffix=".tmp", dir=path.parent))
        try:
            path.rename(away / "old")
        except BaseException:
            away.rmdir()
            raise
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror or str(error)
    shutil.rmtree(away, ignore_errors=True)
    return "it is hidden and could not be removed whole: its folder cannot be written" if away.exists() else None
