"""Where a merged model is written: the directory is checked before anything is read, and appears whole or not at all."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import MergeError, WriteError
from fusionbench_lite.paths import check_name, expanded
from fusionbench_lite.weights.stored.indexes import INDEX

_WRITTEN = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors|" + re.escape(INDEX))
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LONGEST = 255
"""Bytes of a name on every common file system."""


def checked_out(out: Any, sources: Mapping[str, Any]) -> Path:
    """Return the real path of the directory to write, links followed. Nothing is read or written for it.

    `sources` are the inputs of the merge by their names in messages; only those from files matter. Raises MergeError for a
    directory that is, contains, or lies inside an input, that is or contains the working directory, or cannot be replaced as
    a whole, and WriteError for a name that the file system refuses.
    """
    if not isinstance(out, (str, os.PathLike)) or not os.fspath(out):
        raise MergeError(f"out is {out!r}: give the path of a directory")
    given = expanded(out)
    check_name(given)
    if given.is_symlink() and not given.exists():
        raise MergeError(f"out {given} is a link that leads nowhere: remove it, or give another directory")
    folder = Path(os.path.realpath(given))
    for who, source in sources.items():
        _check_apart(given, folder, who, source)
    if _identity(folder) in _chain(Path.cwd()):
        which = "is" if _identity(folder) == _identity(Path.cwd()) else "contains"
        raise MergeError(f"out {given} {which} the working directory, which would be replaced: give another directory")
    if os.path.ismount(folder):
        raise MergeError(f"out {given} is where a file system is mounted and cannot be replaced: give a directory below it")
    return folder


def _check_apart(given: Path, folder: Path, who: str, source: Any) -> None:
    for place in _places(source):
        above, real = _chain(place.absolute()), Path(os.path.realpath(place))
        mine = _identity(folder)
        if mine is not None and mine in above | _chain(real):
            which = "is" if mine == _identity(real) else "contains"
            raise MergeError(f"out {given} {which} {place}, which {who} is read from: give another directory")
        there = _identity(real)
        if there is not None and there in _chain(folder):
            raise MergeError(f"out {given} lies inside {place}, which {who} is read from: give a directory outside of it")


def _places(source: Any) -> Iterator[Path]:
    """Yield the paths that an input is read from: the one given, and what links in that folder lead to."""
    if not isinstance(source, (str, os.PathLike)):
        source = getattr(source, "path", None) or getattr(source, "folder", None)
    if not isinstance(source, (str, os.PathLike)):
        return
    path = expanded(source)
    yield path
    try:
        yield from (entry.resolve() for entry in path.iterdir() if entry.is_symlink() and entry.is_file())
    except (OSError, ValueError):
        return  # a file, or the reader says what is wrong with it


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from all others, whatever it is called; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _chain(path: Path) -> set[tuple[int, int] | None]:
    """Return the identities of a path and of all folders above it."""
    return {identity for place in (path, *path.parents) if (identity := _identity(place)) is not None}


def check_tasks(tasks: Iterable[Any], folder: Path) -> None:
    """Refuse tasks that cannot name directories of their own below `folder`, here or on another system. Raises MergeError."""
    seen: dict[str, Any] = {}
    for task in tasks:
        reason = _no_folder(task)
        if reason is None:
            alike = unicodedata.normalize("NFC", task).casefold()
            if alike in seen:
                reason = f"and {seen[alike]!r} are one name where case does not count"
            seen[alike] = task
        if reason is not None:
            raise MergeError(f"task {task!r} cannot name a directory below {folder} ({reason}): rename it")


def _no_folder(task: Any) -> str | None:
    if not isinstance(task, str):
        return f"a {type(task).__name__}, no text"
    if not task or task.startswith("."):
        return "empty" if not task else "it begins with a dot"
    bad = re.search(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]', task)
    if bad is not None:
        return f"it has {bad[0]!r}"
    if task[-1] in ". " or task[0] == " ":
        return "it ends with a dot or has a blank at its ends"
    if _RESERVED.fullmatch(task):
        return "Windows keeps that name to itself"
    if task.lower().endswith((".safetensors", ".json", ".tmp", ".part")):
        return "it is called like a file"
    length = len(task.encode())
    return f"{length} bytes long, at most {_LONGEST} are possible" if length > _LONGEST else None


def check_replaceable(folder: Path, beside: Callable[[Path], Collection[str]], subfolders: Iterable[str] = ()) -> None:
    """Refuse to replace what is not an earlier result: a folder with anything but files of weights as they are written here, and
    those that `beside` names of a folder.

    `subfolders` may be there as well, with the same files. Raises MergeError.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise MergeError(f"{folder} is a file: give the path of a directory")
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise WriteError(f"cannot look into {folder} ({error.strerror}), which would be replaced: choose another one") from error
    ours = beside(folder)
    for entry in entries:
        if entry.name in subfolders and entry.is_dir() and not entry.is_symlink():
            check_replaceable(entry, beside)
        elif entry.is_dir() or not (_WRITTEN.fullmatch(entry.name) or entry.name in ours):
            raise MergeError(f"{folder} would be replaced, but holds {entry.name!r}: choose another directory or empty it")
