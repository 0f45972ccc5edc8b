"""Single files of other servers than the hub, by address and MD5: the same transfer, another place in the cache.

    archives/<MD5>/<name>          the file; one that was put there by hand counts as well
    archives/<something>-<MD5>/    what was made from it
    archives/.partial/, .locks/ and .verified/, as in the hub's cache

The hub's token is never sent.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fusionbench_lite.errors import InputError, WriteError
from fusionbench_lite.hub.asked import Wanted, WebFile, web_file
from fusionbench_lite.hub.download import Report, download_web, file_md5
from fusionbench_lite.hub.failures import Failure
from fusionbench_lite.hub.settings import current
from fusionbench_lite.hub.store import Store

__all__ = ["WebFile", "arrived", "fetch", "is_sound", "made_from", "place", "present", "web_file"]
log = logging.getLogger(__name__)


def place(asked: WebFile, cache: Path) -> Path:
    """Return where a file lies or has to be put."""
    return _store(cache).folder(asked) / asked.file


def made_from(asked: WebFile, name: str, cache: Path) -> Path:
    """Return a folder for what is made from a file."""
    return _store(cache).root / f"{name}-{asked.md5}"


def present(asked: WebFile, cache: Path) -> Path | None:
    """Return a file that the cache holds, after hashing it, or None. Makes no request."""
    path = place(asked, cache)
    try:
        return path if path.is_file() and file_md5(path) == asked.md5 else None
    except OSError:
        return None


def arrived(asked: WebFile, cache: Path) -> int:
    """Return how many bytes a download that was stopped has left, which the next one continues."""
    return _store(cache).arrived(asked, asked.md5)


def fetch(asked: WebFile, cache: Path, report: Report | None = None) -> Path:
    """Return a file with the wanted MD5, downloaded if `cache` does not hold it.

    `report` is called with a description and megabytes done and in all. A download that was stopped is continued; of two
    processes one downloads and the other waits. Raises InputError, in one line that names the address, the cause and where the
    file can be put by hand, after a bounded number of attempts; then the cache shows nothing of it.
    """
    final = place(asked, cache)
    path = present(asked, cache)
    if path is not None:
        return path
    by_hand = f"or put the file there by hand: {final}"
    now = current()
    if now.offline:
        reason = "has another MD5" if final.is_file() else "is not there"
        raise InputError(
            f"{asked.label} is needed, {final} {reason}, and HF_HUB_OFFLINE forbids downloads: unset it, {by_hand} "
            f"(MD5 {asked.md5})"
        )
    with _store(cache).lock(asked):
        path = present(asked, cache)  # another process may have downloaded it meanwhile
        if path is not None:
            return path
        if final.exists():
            log.warning("%s has another MD5 than %s: fetching it again", final, asked.md5)
        try:
            download_web(asked, final, _store(cache), now.elsewhere(asked.url), report)
        except Failure as failure:
            kind = WriteError if failure.kind == "disk" else InputError
            raise kind(f"cannot download {asked.label}: {failure.reason}; {failure.fix}, {by_hand}") from failure
    return final


def is_sound(path: Path, sha256: str, size: int, cache: Path) -> bool:
    """Say whether a file made from one of these has this SHA-256 and size; it is hashed when it has changed since it last was."""
    return _store(cache).checked(path, Wanted(sha256, size)) is not None


def _store(cache: Path) -> Store:
    return Store(Path(cache) / "archives")
