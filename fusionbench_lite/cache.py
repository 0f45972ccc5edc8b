"""`python -m fusionbench_lite.cache [list|prune|verify] [KEY=VALUE ...]`: what lies in the cache, and clearing it.

    list      number, size and last use by kind (the default); --verbose: every entry
    prune     remove entries; without yes=true it is only said which
    verify    compare entries with their hashes, or read their form where there are none; status 1 where one is damaged

    cache_dir=DIR     the cache; default: that of runs
    kind=a,b          these kinds alone
    older=30d         unused for so long (m, h, d, w)
    larger=1GB        at least so large (KB, MB, GB, TB)
    keep=50GB         of prune: as many, the longest unused first, as leave so much
    yes=true          of prune: remove them
    repair=true       of verify: remove what is damaged, so that it is made again

Safe beside running jobs: what they may still read is kept, and said. Unknown files and links out of the cache are never removed.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionbench_lite.base.needs import bytes_of, size_text
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.fields import flag, location
from fusionbench_lite.fields import kind as declared
from fusionbench_lite.housekeeping import entries, pruning, verifying
from fusionbench_lite.housekeeping.entries import KINDS, LEFT, Entry
from fusionbench_lite.housekeeping.line import command, parsed, span
from fusionbench_lite.paths import cache_dir

USAGE = f"usage: python -m fusionbench_lite.cache [list|prune|verify] [KEY=VALUE ...]\n\n{__doc__}"


def _kinds(value: Any) -> tuple[str, ...]:
    names = tuple(name.strip() for name in str(value).strip("[]").split(","))
    for name in names:
        if name not in KINDS and name != LEFT:
            raise ValueError(did_you_mean(name, [*KINDS, LEFT]))
    return names


def _size(default: None) -> Any:
    return declared(default, bytes_of, "a size, as in 5GB or 500MB", optional=True, is_text=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line; see the module's text."""

    cache_dir: str | None = location(None, optional=True)
    kind: tuple[str, ...] | None = declared(None, _kinds, f"names among {', '.join([*KINDS, LEFT])}", optional=True, is_text=True)
    older: float | None = span()
    larger: int | None = _size(None)
    keep: int | None = _size(None)
    yes: bool = flag(False)
    repair: bool = flag(False)
    verbose: bool = flag(False)


OF_ALL = {"cache_dir", "kind", "older", "larger"}
ACTIONS = {"list": OF_ALL | {"verbose"}, "prune": OF_ALL | {"keep", "yes"}, "verify": OF_ALL | {"repair"}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 done, 1 where verify found damage or prune could not remove something, 2 bad input."""
    return command(USAGE, arguments, _main)


def _main(given: list[str]) -> int:
    action, _, options = parsed(given, ACTIONS, Options, {})
    cache = cache_dir(options.cache_dir)
    if not cache.is_dir():
        raise InputError(f"cache_dir={cache} is no folder: nothing is cached there")
    wish = pruning.Wish(kinds=options.kind or (), older=options.older, larger=options.larger, keep=options.keep)
    found = pruning.chosen(entries.entries(cache), wish, time.time())
    if action == "list":
        return _list(cache, found, verbose=options.verbose)
    return _prune(cache, found, yes=options.yes) if action == "prune" else _verify(cache, found, repair=options.repair)


def _list(cache: Path, found: list[Entry], *, verbose: bool) -> int:
    print(f"{cache}: {len(found):,} entries, {size_text(sum(entry.nbytes for entry in found))}")
    for name in [*KINDS, LEFT]:
        those = [entry for entry in found if entry.kind == name]
        if those:
            size, used = size_text(sum(entry.nbytes for entry in those)), entries.ago(max(entry.used for entry in those))
            what = KINDS[name].what if name in KINDS else "of processes that were interrupted"
            print(f"  {name:<15} {len(those):>7,} {size:>9}  {used:<15} {what}")
        for entry in those if verbose else ():
            print(f"    {size_text(entry.nbytes):>9}  {entries.ago(entry.used):<15} {entry.path.relative_to(cache)}")
    for path in entries.unknown(cache):
        print(f"  not of this package, never removed: {path.name}")
    return 0


def _prune(cache: Path, found: list[Entry], *, yes: bool) -> int:
    guarded = pruning.guard(cache)
    if not yes:
        gone = [entry for entry in found if guarded.keeps(entry) is None]
        for entry in found:
            reason = guarded.keeps(entry)
            _say("would go" if reason is None else f"kept: {reason}", entry, cache)
        print(f"{len(gone):,} of {len(found):,} entries would go, {size_text(sum(one.nbytes for one in gone))}: add yes=true")
        return 0
    freed, failed, count = 0, 0, 0
    for entry, reason in pruning.remove(found, guarded):
        _say("removed" if reason is None else f"kept: {reason}", entry, cache)
        if reason is None:
            freed, count = freed + entry.nbytes, count + 1
        else:
            failed += guarded.keeps(entry) is None
    print(f"{count:,} of {len(found):,} entries removed, {size_text(freed)} freed")
    return 1 if failed else 0


def _verify(cache: Path, found: list[Entry], *, repair: bool) -> int:
    damaged, hashed = [], 0
    for entry in found:
        hashed += verifying.checked(entry)
        if flaws := verifying.flaws(entry):
            damaged.append(entry)
            for flaw in flaws:
                print(flaw)
    print(f"{len(found):,} entries, {hashed:,} of them compared with hashes: {len(damaged):,} damaged")
    if not damaged:
        return 0
    if not repair:
        print("repair=true removes what is damaged, so that it is made again")
        return 1
    left = 0
    for entry, reason in pruning.remove(damaged, pruning.guard(cache)):
        _say("removed" if reason is None else f"kept: {reason}", entry, cache)
        left += reason is not None
    return 1 if left else 0


def _say(what: str, entry: Entry, cache: Path) -> None:
    print(f"{what}: {entry.kind}, {size_text(entry.nbytes)}, {entries.ago(entry.used)}, {entry.path.relative_to(cache)}")


if __name__ == "__main__":
    sys.exit(main())
