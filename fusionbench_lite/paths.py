"""Where things live, and how files appear: whole or not at all."""

# What users write is text until it is expanded: pathlib drops the ./ of ./~x, and raises for what is too long.

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fusionbench_lite.errors import InputError, WriteError

log = logging.getLogger(__name__)

MOMENT = 3.0
"""Seconds of waiting for another process that need no word."""
CACHE_VARIABLE = "FUSIONBENCH_LITE_CACHE"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
_SEPARATOR = re.compile(r"[/\\]" if os.name == "nt" else "/")
_PACKAGE = Path(__file__).resolve().parent


def package_dir() -> Path:
    """Return the folder of the package."""
    return _PACKAGE


def expanded(path: str | os.PathLike[str], *, interpolated: bool = False) -> Path:
    """Return a path that a user gives, with `~` and environment variables expanded; every such path comes through here.

    A `$` that names no variable belongs to the name of what is there, and so does one whose expansion is not there while the
    path as it is written is. Raises InputError for a variable that is not set and for a user without a home. `interpolated`:
    of `${...}` only variables are expanded, since the rest is Hydra's. What is returned expands to itself.
    """
    text = os.fspath(path)
    written, full = _at_home(text), _at_home(os.path.expandvars(text))
    names = _VARIABLE.findall(text)
    unset = [name for name in names if name.strip("{}") not in os.environ and not (interpolated and name.startswith("{"))]
    named = up_to_last("$", written)
    if names and (unset or not os.path.exists(full)) and os.path.exists(named):
        log.debug("%s is there: its $ is no variable", named)
        return Path(written)
    if unset:
        raise InputError(
            f"{text}: the environment variable {unset[0].strip('{}')} is not set: set it, or make {named} "
            "first where its name has a $"
        )
    return Path(full)


def _at_home(text: str) -> str:
    """Return a path with the `~` at its start expanded. One that still starts so is absolute, lest it is expanded again."""
    full = os.path.expanduser(text)
    if text.startswith("~") and (full == text or os.environ.get("HOME") == ""):
        user = _SEPARATOR.split(text)[0]
        if not os.path.exists(text):
            raise InputError(f"{text}: {user} has no home folder: write {os.path.join(os.curdir, text)} for a folder of that name")
        full = os.path.abspath(text)
    return os.path.abspath(full) if os.path.normpath(full).startswith("~") else full


def up_to_last(sign: str, path: str) -> str:
    """Return a path up to the last of its parts that has a sign."""
    head, found, tail = path.rpartition(sign)
    return head + found + _SEPARATOR.split(tail)[0]


def folder(key: str, path: Path) -> Path:
    """Return a folder that a run writes into. Raises InputError where a file is in its place or above it."""
    place = nearest_existing(path)
    if not place.is_dir():
        raise InputError(f"{key}={path.absolute()}: {place} is no folder: choose another")
    return path


def ignores_case(path: Path) -> bool:
    """Say whether the file system there takes names that differ in case for one."""
    place = nearest_existing(path)
    twin = place.with_name(place.name.swapcase())
    return twin.name != place.name and os.path.exists(twin) and os.path.samefile(place, twin)


def cache_dir(configured: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache directory: the configured one, else $FUSIONBENCH_LITE_CACHE, else the platform's own."""
    chosen = configured or os.environ.get(CACHE_VARIABLE)
    if chosen:
        return expanded(chosen).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("fusionbench_lite", appauthor=False))


def config_dir() -> Path:
    """Return the directory of the Hydra configuration."""
    return _data_dir("conf")


def experiments_dir() -> Path:
    """Return the directory of the experiment files."""
    return _data_dir("experiments")


def published_dir() -> Path:
    """Return the directory of the papers' numbers."""
    return _data_dir("results/published")


def _data_dir(name: str) -> Path:
    """Return a directory that lies beside the package in a checkout and inside it in an installed wheel."""
    for candidate in (_PACKAGE.parent / name, _PACKAGE / "_data" / name):
        if candidate.is_dir():
            return candidate
    raise InputError(f"{name}/ is neither in {_PACKAGE.parent} nor in {_PACKAGE / '_data'}: reinstall the package")


def nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest one above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.path.exists(place))


@contextlib.contextmanager
def atomic_directory(final: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Yield a fresh directory that becomes `final` when the block ends without an error.

    The directory is written under a temporary name beside `final`, flushed to disk and renamed; an existing `final`
    is replaced. After an error nothing is left, folders made for it included, and an existing `final` is as it was. Raises
    WriteError naming `final` when the file system refuses.

    `resumable`: the directory is `unfinished(final)`, which may be there already, and it stays where the block is interrupted
    (KeyboardInterrupt, SystemExit) after something was written.
    """
    with _beside(final) as made:
        temporary = unfinished(final)
        if resumable:
            temporary.mkdir(exist_ok=True)
        else:
            temporary = Path(tempfile.mkdtemp(prefix=_hidden(final), suffix=".tmp", dir=final.parent))
        kept = False
        try:
            yield temporary
            temporary.chmod(0o755)
            for path in temporary.rglob("*"):
                _flush(path)
            if final.exists():
                _exchange(temporary, final)
            else:
                temporary.rename(final)
            made.clear()
        except (KeyboardInterrupt, SystemExit):
            if kept := resumable and any(temporary.iterdir()):
                made.clear()
            raise
        finally:
            if temporary.exists() and not kept:
                shutil.rmtree(temporary, ignore_errors=True)
        _flush(final.parent)


def unfinished(final: Path) -> Path:
    """Return the directory beside `final` in which it is written by what can be continued."""
    mark = "" if len(os.fsencode(final.name)) <= 220 else hashlib.sha256(os.fsencode(final.name)).hexdigest()[:8] + "."
    return final.with_name(f"{_hidden(final)}{mark}unfinished")


@contextlib.contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """Yield a temporary path whose file becomes `final` when the block ends without an error.

    Raises WriteError naming `final` when the file system refuses; after an error nothing is left.
    """
    with _beside(final) as made:
        handle, name = tempfile.mkstemp(prefix=_hidden(final), suffix=".tmp", dir=final.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            _flush(temporary)
            temporary.replace(final)
            made.clear()
        finally:
            temporary.unlink(missing_ok=True)
        _flush(final.parent)


@contextlib.contextmanager
def _beside(final: Path) -> Iterator[list[Path]]:
    """Make the folders above `final` and yield those that were not there; they are removed again while they are listed."""
    made: list[Path] = []
    try:
        check_name(final)
        for folder in reversed([final.parent, *final.parent.parents]):
            if not folder.exists():
                with contextlib.suppress(FileExistsError):  # another process makes it
                    folder.mkdir()
                    made.append(folder)
        yield made
    except OSError as error:
        raise WriteError(_cannot_write(final, error)) from error
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # in use by another process
                folder.rmdir()


def check_name(path: Path) -> None:
    """Raise WriteError for a path that no file can have here, such as one with a name of 300 letters."""
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise WriteError(_cannot_write(path, error)) from error
    except ValueError as error:
        raise WriteError(f"cannot write {str(path)!r}: {error}; choose another name") from error


def _hidden(final: Path) -> str:
    """Return how temporary names begin: like the name, and short enough beside the longest one of 255 bytes."""
    return f".{os.fsdecode(os.fsencode(final.name)[:220])}."


def _exchange(temporary: Path, final: Path) -> None:
    """Put a directory in the place of another, which is removed; where that fails, the other is put back."""
    retired = Path(tempfile.mkdtemp(prefix=_hidden(final), suffix=".old.tmp", dir=final.parent))
    try:
        final.rename(retired / "old")
        try:
            temporary.rename(final)
        except BaseException:
            (retired / "old").rename(final)
            raise
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: what could not be put back is kept
            retired.rmdir()
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> str:
    return f"cannot write {path}: {error.strerror or error}; nothing was left there, {mended(error)}"


def mended(error: OSError) -> str:
    """Return what helps where a file system refuses to write, for the end of a message."""
    if error.errno in NO_SPACE:
        return "free some space or choose another directory"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permit writing there or choose another directory"
    return "choose a directory that can be written"


def _flush(path: Path) -> None:
    """Ask the file system to put a file or a directory entry on disk (a no-op where directories cannot be opened)."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDONLY
    try:
        handle = os.open(path, flags)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes for the length of the block; a second process waits, and says so when that takes
    longer than a moment."""
    import filelock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=MOMENT)
        except filelock.Timeout:
            log.info("another process is at work behind %s: waiting for it", path)
            lock.acquire()
    except OSError as error:
        raise WriteError(_cannot_write(path, error)) from error
    try:
        yield
    finally:
        lock.release()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
