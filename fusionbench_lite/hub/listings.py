"""Lists of files that the cache keeps, by commit and folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import urllib.parse
from pathlib import Path
from typing import Any

from fusionbench_lite.hub.asked import SHA256, Entry, HubFile, entry_of
from fusionbench_lite.hub.settings import shared_cache
from fusionbench_lite.hub.store import Store, blob_name, write


def kept(store: Store, asked: HubFile) -> list[Entry] | None:
    """Return the stored list of the files below a folder, of the newest commit that has one; None without one.

    A list that damage has changed counts as absent: it is asked for again.
    """
    for commit in store.commits(asked):
        for name in dict.fromkeys([asked.file, ""]):
            with contextlib.suppress(OSError, ValueError, TypeError):
                entries = [entry_of(row) for row in _rows(_file(store, asked, commit, name).read_text())]
                return [entry for entry in entries if not asked.file or entry.path.startswith(f"{asked.file}/")]
    return None


def keep(store: Store, asked: HubFile, commit: str, entries: list[Entry]) -> None:
    """Store a list of files. Raises OSError or InputError."""
    rows = [dataclasses.astuple(entry) for entry in entries]
    write(_file(store, asked, commit, asked.file), json.dumps({"files": rows, "sha256": _sha256(rows)}))
    store.remember(asked, commit)


def at_hand(store: Store, asked: HubFile) -> list[Entry]:
    """Return the files below a folder that the caches hold of a revision: what is left without a network and a list."""
    entries: dict[str, Entry] = {}
    theirs = shared_cache() / store.folder(asked).name
    snapshots = [store.folder(asked) / "snapshots" / commit for commit in store.commits(asked)]
    with contextlib.suppress(OSError):
        pinned = asked.revision if asked.pinned else (theirs / "refs" / asked.revision).read_text().strip()
        snapshots.append(theirs / "snapshots" / pinned)
    for snapshot in snapshots:
        for path in sorted((snapshot / asked.file).rglob("*")):
            name = path.relative_to(snapshot).as_posix()
            blob = blob_name(path) or ""
            if path.is_file() and name not in entries:
                entries[name] = Entry(name, path.stat().st_size, blob if SHA256.fullmatch(blob) else None)
    return list(entries.values())


def _rows(text: str) -> list[Any]:
    """Return the rows of a stored list. Raises ValueError where they are not those that were stored, or none."""
    content = json.loads(text)
    rows = content.get("files") if isinstance(content, dict) else content  # earlier versions stored the rows alone
    if not isinstance(rows, list) or (isinstance(content, dict) and content.get("sha256") != _sha256(rows)):
        raise ValueError("the list is not the one that was stored")
    return rows


def _sha256(rows: list[Any]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _file(store: Store, asked: HubFile, commit: str, folder: str) -> Path:
    return store.folder(asked) / "listings" / commit / f"{urllib.parse.quote(folder, safe='') or '.all'}.json"
