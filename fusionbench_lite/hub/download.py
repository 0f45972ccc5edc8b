"""The download of one file into the cache, from a hub or from another server, and of a list of files."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from fusionbench_lite.errors import InputError, WriteError, nearest
from fusionbench_lite.hub import listings
from fusionbench_lite.hub.asked import SHA256, Asked, Entry, Fetched, HubFile, Wanted, WebFile, fits_etag
from fusionbench_lite.hub.failures import Failure, repeat
from fusionbench_lite.hub.settings import HubSettings
from fusionbench_lite.hub.store import Store, no_room, settle
from fusionbench_lite.hub.transfer import Remote, commit_of, describe, listed, receive
from fusionbench_lite.paths import file_sha256

Report = Callable[[str, int, int], None]
_MB = 1_000_000
_ELSEWHERE = {"no file", "no revision", "other content"}


def download_file(asked: HubFile, want: Wanted, store: Store, now: HubSettings, report: Report | None) -> Fetched:
    """Fetch from the commit that the cache knows the revision by, else from what the revision stands for now.

    The caller holds the file's lock. Raises InputError naming repository, file, cause and fix.
    """
    revisions = list(dict.fromkeys([*store.commits(asked)[:1], asked.revision]))
    for position, revision in enumerate(revisions):
        at = asked.at(revision)
        try:
            return _download_at(at, asked, want, store, now, report)
        except Failure as failure:
            if failure.kind in _ELSEWHERE and position + 1 < len(revisions):
                continue
            fix = _nearest(asked, now) or failure.fix if failure.kind == "no file" else failure.fix
            kind = WriteError if failure.kind == "disk" else InputError
            raise kind(f"cannot download {asked.label}: {failure.reason}; {fix}") from failure
        except OSError as error:
            raise no_room(asked, store.root, error) from error
    raise AssertionError("a revision always has one place to look")


def _download_at(at: HubFile, asked: HubFile, want: Wanted, store: Store, now: HubSettings, report: Report | None) -> Fetched:
    held = [0]

    def attempt() -> Fetched:
        remote = describe(at, now)
        announced = remote.etag if remote.etag and SHA256.fullmatch(remote.etag) else None
        if not want.agrees(announced, remote.size):
            raise _other_content(want, announced, remote.size)
        blob = store.blob(asked, remote.etag)
        if blob is not None:
            if not want.agrees(blob[1], None):
                raise _other_content(want, blob[1], None)
            return store.link(*blob, asked, remote.commit)
        part = store.partial(asked, remote.etag)
        _receive(remote, part, asked, now, held, report)
        return store.enter(part, _checked(part, remote, want), remote.etag, asked, remote.commit)

    return repeat(attempt, now, asked, lambda: held[0])


def download_web(asked: WebFile, final: Path, store: Store, now: HubSettings, report: Report | None) -> None:
    """Fetch a file of no repository to `final`, once its MD5 is the wanted one. The caller holds the file's lock.

    `now` are the settings of its server. Raises Failure, and InputError where there is no room.
    """
    held = [0]

    def attempt() -> None:
        remote = describe(asked, now)
        part = store.collected(asked, asked.md5)
        _receive(remote, part, asked, now, held, report)
        md5 = file_md5(part)
        if md5 != asked.md5:
            part.unlink()
            held[0] = 0
            reason = f"what came has MD5 {md5}, and {asked.md5} is expected"
            raise Failure("damaged", reason, "check proxies that change content and whether the network wants a login", again=True)
        settle(part, final)

    try:
        repeat(attempt, now, asked, lambda: held[0])
    except OSError as error:
        raise no_room(asked, final, error) from error


def file_md5(path: Path) -> str:
    """Return the MD5 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _receive(remote: Remote, part: Path, asked: Asked, now: HubSettings, held: list[int], report: Report | None) -> None:
    """Bring a file's content to `part`, which is removed where there is no room for it."""
    try:
        receive(remote, part, asked, now, lambda done: _arrived(asked, remote, done, held, report))
    except OSError as error:
        part.unlink(missing_ok=True)
        raise no_room(asked, part, error) from error


def _arrived(asked: Asked, remote: Remote, done: int, held: list[int], report: Report | None) -> None:
    before, held[0] = held[0], done
    if report is None:
        return
    total = max(-(-(remote.size or done) // _MB), 1)
    if done // _MB != before // _MB or done == remote.size:
        report(f"{asked.title}, MB", total if done == remote.size else done // _MB, total)


def _checked(part: Path, remote: Remote, want: Wanted) -> str:
    """Return the SHA-256 of a whole download. Raises Failure, after removing it, if it is not what was announced or wanted."""
    sha256 = file_sha256(part)
    size = part.stat().st_size
    fits = fits_etag(part, sha256, remote.etag)
    if fits is False:
        part.unlink()
        reason = f"what came does not have the checksum {remote.etag} that was announced (its SHA-256 is {sha256})"
        raise Failure("damaged", reason, "try later, or check proxies that change content", again=True)
    if not want.agrees(sha256, size):
        part.unlink()
        failure = _other_content(want, sha256, size)
        failure.again = fits is None  # without a checksum from the hub it may be the transfer's fault
        raise failure
    return sha256


def _other_content(want: Wanted, sha256: str | None, size: int | None) -> Failure:
    if want.size is not None and size is not None and size != want.size:
        reason = f"it has {size} bytes there, and {want.size} are expected"
    else:
        reason = f"it has SHA-256 {sha256} there, and {want.sha256} is expected"
    return Failure("other content", reason, "the file was replaced: name the commit that had it, or update what is expected")


def listing(asked: HubFile, store: Store, now: HubSettings) -> list[Entry]:
    """Return the files below a folder from the hub, at the commit the cache knows the revision by if it still is there."""
    commit_held: str | None = next(iter(store.commits(asked)), None)
    try:
        commit, entries = _listed(asked, commit_held, now)
    except Failure as failure:
        reason = failure.reason if failure.kind != "no file" else f"{now.endpoint} has no such folder"
        raise InputError(f"cannot list {asked.label}: {reason}; {failure.fix}") from failure
    with contextlib.suppress(OSError, InputError):  # a cache that cannot be written costs a request per run, no more
        listings.keep(store, asked, commit, entries)
    return entries


def _listed(asked: HubFile, commit_held: str | None, now: HubSettings) -> tuple[str, list[Entry]]:
    def attempt(commit: str | None) -> tuple[str, list[Entry]]:
        commit = commit or commit_of(asked, now)
        return commit, listed(asked.at(commit), now)

    if commit_held is not None:
        try:
            return repeat(lambda: attempt(commit_held), now, asked)
        except Failure as failure:
            if asked.pinned or failure.kind not in _ELSEWHERE:
                raise
    return repeat(lambda: attempt(None), now, asked)


def _nearest(asked: HubFile, now: HubSettings) -> str | None:
    """Return a hint at the file that may have been meant: one request, no second attempt."""
    try:
        names = [entry.path for entry in listed(HubFile(asked.repo, "", asked.kind, asked.revision), now, pages=1)]
    except Failure:
        return None
    match = nearest(asked.file, names)
    return f"did you mean {match!r}?" if match and match != asked.file else None
