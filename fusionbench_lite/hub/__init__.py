"""Single files and lists of files from the hub, checked before they are visible, from a cache wherever it has them.

Files are streamed here, by huggingface_hub's session (its proxies, certificates and token) and into its cache layout, and not by
its `hf_hub_download`: that one starts over when a process was stopped, puts a file into the cache without comparing its SHA-256,
waits as long as a server asks it to, and reads the environment when it is imported. It would also fetch from a second service
(Xet), which mirrors do not have. A staging cache could mend the second point only.

What a cache holds is used without asking the hub, so a finished download never needs a network again, and a branch stands for the
commit it stood for when its first file was fetched; a later commit is asked for when a file is not in that one, or is not the
wanted one. A cache directory of its own, or a commit as `revision`, makes that explicit.

`web` fetches single files of other servers in the same way.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fusionbench_lite.errors import InputError
from fusionbench_lite.hub import listings
from fusionbench_lite.hub.asked import Entry, Fetched, HubFile, Wanted, hub_file, wanted
from fusionbench_lite.hub.download import Report, download_file, listing
from fusionbench_lite.hub.settings import current, shared_cache
from fusionbench_lite.hub.store import Store

__all__ = ["Entry", "Fetched", "arrived", "fetch", "present", "tree"]
log = logging.getLogger(__name__)


def fetch(
    repo: str, file: str, *, kind: str = "model", revision: str = "main", cache: Path, sha256: str | None = None,
    size: int | None = None, report: Report | None = None,
) -> Fetched:
    """Return one file of a repository, downloaded if neither `cache` nor the user's Hugging Face cache holds it.

    `kind` is "model" or "dataset"; `revision` a branch, a tag or a commit. `sha256` (64 digits or at least the first 8) and `size`
    in bytes are what the file has to be. `report` is called with a description and megabytes done and in all. A download
    that was stopped is continued; of two processes one downloads and the other waits. Raises InputError, in one line that names
    repository, file, cause and fix, after a bounded number of attempts; then no cache holds anything of the file.
    """
    asked = hub_file(repo, file, kind, revision)
    if not file:
        raise InputError(f"no file of {kind} {repo} is named: give its path inside the repository")
    want = wanted(asked, sha256, size)
    store = _store(cache)
    held = store.find(asked, want)
    if held is not None:
        return held
    now = current()
    if now.offline:
        raise _offline(asked, want, store)
    with store.lock(asked):
        return store.find(asked, want) or download_file(asked, want, store, now, report)


def present(
    repo: str, file: str, *, kind: str = "model", revision: str = "main", cache: Path, sha256: str | None = None,
    size: int | None = None,
) -> Fetched | None:
    """Return a file that the caches hold, checked against its name there and the arguments, or None. Makes no request.

    A file is hashed the first time it is seen and when it has changed since.
    """
    asked = hub_file(repo, file, kind, revision)
    return _store(cache).find(asked, wanted(asked, sha256, size))


def arrived(repo: str, file: str, *, kind: str = "model", revision: str = "main", cache: Path, sha256: str | None) -> int:
    """Return how many bytes of a file of this SHA-256 a download that was stopped has left, which the next one continues."""
    return 0 if sha256 is None else _store(cache).arrived(hub_file(repo, file, kind, revision), sha256)


def tree(repo: str, *, kind: str = "model", revision: str = "main", under: str = "", cache: Path) -> list[Entry]:
    """Return the files of a repository below the folder `under`, sorted by path; the list is kept for use without a network.

    Without a network and without a list, the files that the caches hold are returned: perhaps not all there are.
    Raises InputError as `fetch` does.
    """
    asked = hub_file(repo, under.rstrip("/"), kind, revision)
    store = _store(cache)
    entries = listings.kept(store, asked)
    if entries is None:
        try:
            now = current()
            if now.offline:
                raise _offline(asked, Wanted(), store)
            entries = listing(asked, store, now)
        except InputError as error:
            entries = listings.at_hand(store, asked)
            if not entries:
                raise
            log.warning("%s: using the %d files that the caches hold, perhaps not all there are", error, len(entries))
    return sorted(entries, key=lambda entry: entry.path)


def _store(cache: Path) -> Store:
    return Store(Path(cache) / "hub")


def _offline(asked: HubFile, want: Wanted, store: Store) -> InputError:
    content = f" with SHA-256 {want.sha256}" if want.sha256 else ""
    where = f"neither in {store.root} nor in {shared_cache()}"
    fix = "unset it, or fill one of them on a machine with a network"
    return InputError(f"{asked.label}{content} is {where}, and HF_HUB_OFFLINE forbids downloads: {fix}")
