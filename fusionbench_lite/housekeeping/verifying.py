"""Whether the entries of a cache are what they were when they were written: by hashes where there are some, else by their form.

Files are read without a note of it, so that what was looked through does not count as used.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fusionbench_lite.base.safetensors_header import header_in
from fusionbench_lite.housekeeping.entries import LEFT, Entry

MANIFEST = "manifest.json"
_CHUNK = 1 << 22


def flaws(entry: Entry) -> list[str]:
    """Return what is wrong with an entry, a line each; a file that another process has just removed is no flaw."""
    if entry.kind in (LEFT, "scratch"):
        return []
    check: Callable[[Path], Iterator[str]] = _downloads if entry.kind in ("downloads", "archives") else _files
    try:
        return list(check(entry.path))
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{error.filename or entry.path}: {error.strerror}"]


def checked(entry: Entry) -> bool:
    """Say whether hashes tell what the content of an entry has to be; of others only the form is read."""
    if entry.path.is_dir():
        return (entry.path / MANIFEST).is_file() or (entry.path / "blobs").is_dir()
    return False


def _files(path: Path) -> Iterator[str]:
    """Yield the flaws of a file, or of the files in a folder by its manifest and their own form."""
    if not path.is_dir():
        yield from _form(path)
        return
    hashes = {}
    if (path / MANIFEST).is_file():
        try:
            hashes = {name: said["sha256"] for name, said in json.loads(_content(path / MANIFEST))["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            yield f"{path / MANIFEST}: it is no manifest"
    for name, sha256 in hashes.items():
        if not (path / name).is_file():
            yield f"{path / name}: it is missing"
        elif (found := _digest(path / name, hashlib.sha256, b"")) != sha256:
            yield f"{path / name}: its SHA-256 is {found[:16]}, the manifest says {str(sha256)[:16]}"
    for inner in sorted(path.rglob("*")):
        if inner.is_file() and inner.relative_to(path).as_posix() not in hashes and not inner.name.startswith("."):
            yield from _form(inner)


def _form(path: Path) -> Iterator[str]:
    """Yield the flaw of a file of a form that is known, without its content where that has no checksum."""
    if path.suffix == ".safetensors":
        with _open(path) as file:
            whole = header_in(file, path.stat().st_size) is not None
        if not whole:
            yield f"{path}: it is no whole safetensors file"
    elif path.suffix == ".npz":
        try:
            with _open(path) as file, zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            yield f"{path}: it is no whole npz file ({error})"
        else:
            if broken is not None:
                yield f"{path}: {broken} in it is damaged"
    elif path.suffix == ".json":
        try:
            json.loads(_content(path))
        except ValueError:
            yield f"{path}: it is no JSON"


def _downloads(path: Path) -> Iterator[str]:
    """Yield blobs that are not what their names say, and links of snapshots that lead nowhere."""
    for blob in sorted(path.glob("blobs/*")):
        if blob.is_file() and (wanted := _named(blob)) is not None and _digest(blob, *wanted) != blob.name:
            yield f"{blob}: its content is not that of its name"
    for link in sorted(path.glob("snapshots/**/*")):
        if link.is_symlink() and not link.exists():
            yield f"{link}: what it links to is missing"


def _named(blob: Path) -> tuple[Any, bytes] | None:
    """Return the hash that a blob is named by and what is hashed before its content: SHA-256, or Git's SHA-1 with its size."""
    name = blob.name
    if not all(letter in "0123456789abcdef" for letter in name):
        return None
    if len(name) == 64:
        return hashlib.sha256, b""
    if len(name) == 40:
        return hashlib.sha1, f"blob {blob.stat().st_size}\0".encode()
    return None


def _digest(path: Path, of: Any, start: bytes) -> str:
    digest = of(start)
    with _open(path) as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    found: str = digest.hexdigest()
    return found


def _content(path: Path) -> str:
    with _open(path) as file:
        return file.read().decode()


def _open(path: Path) -> IO[bytes]:
    return open(path, "rb", opener=_unnoted)


def _unnoted(path: str, flags: int) -> int:
    """Open a file so that reading it is not noted, where the system can do that and the file is ours."""
    try:
        return os.open(path, flags | getattr(os, "O_NOATIME", 0))
    except PermissionError:
        return os.open(path, flags)
