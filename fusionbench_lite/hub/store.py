"""The cache of downloads, in huggingface_hub's own layout, so that one look-up serves it and the user's cache.

    models--OWNER--NAME/ or datasets--OWNER--NAME/
        blobs/<checksum>             the content
        snapshots/<commit>/<path>    links to it
        refs/<revision>              the commit that a branch last stood for
        commits/<revision>/<commit>  empty: every commit the branch stood for while files were fetched, newest by date
        listings/<commit>/           lists of files
    .partial/    what has arrived of files that are not whole yet
    .verified/   which files were checked, by size, dates and number, so that a second run need not hash them again
    .locks/
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path

from fusionbench_lite.base.file_hashes import state_of
from fusionbench_lite.errors import InputError, WriteError
from fusionbench_lite.hub.asked import SHA1, SHA256, Asked, Fetched, HubFile, Wanted, fits_etag
from fusionbench_lite.hub.settings import library, shared_cache
from fusionbench_lite.paths import NO_SPACE, atomic_file, file_sha256, locked, mended


@dataclasses.dataclass(frozen=True)
class Store:
    """A cache below `root`."""

    root: Path

    def folder(self, asked: Asked) -> Path:
        """Return the folder of a repository, or of a file of none."""
        return self.root / asked.folder

    @contextlib.contextmanager
    def lock(self, asked: Asked) -> Iterator[None]:
        """Hold the right to write a file; another process waits. Raises WriteError naming the file."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.root / ".locks" / self.folder(asked).name / f"{_digest(asked.file)}.lock"))
            except WriteError as error:
                raise WriteError(f"cannot download {asked.label}: {error}") from error
            yield

    def find(self, asked: HubFile, wanted: Wanted) -> Fetched | None:
        """Return a file that this cache or the user's own one holds, checked; None without one. Makes no request."""
        for path in self._candidates(asked):
            sha256 = self.checked(path, wanted)
            if sha256 is not None:
                return Fetched(path=path, sha256=sha256, commit=_commit(path, asked.file), repo=asked.repo, file=asked.file)
        return None

    def _candidates(self, asked: HubFile) -> Iterator[Path]:
        for commit in self.commits(asked):
            path = self.folder(asked) / "snapshots" / commit / asked.file
            if path.is_file():
                yield path
        library()
        from huggingface_hub import try_to_load_from_cache

        theirs = try_to_load_from_cache(
            asked.repo, asked.file, cache_dir=shared_cache(), revision=asked.revision, repo_type=asked.kind
        )
        if isinstance(theirs, str):
            yield Path(theirs)

    def checked(self, path: Path, wanted: Wanted) -> str | None:
        """Return a file's SHA-256 if its content is what its name in the cache and `wanted` say, else None."""
        try:
            size = path.stat().st_size
            if not wanted.agrees(None, size):
                return None
            sha256, sound = self._digest_of(path)
        except OSError:
            return None
        return sha256 if sound and wanted.agrees(sha256, size) else None

    def _digest_of(self, path: Path) -> tuple[str, bool]:
        """Return a file's SHA-256 and whether it fits its blob's name, from the record if the file has not changed since."""
        now = _state(path)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(self._record(path).read_text())
            if {key: noted[key] for key in now} == now:
                return str(noted["sha256"]), bool(noted["sound"])
        sha256 = file_sha256(path)
        sound = fits_etag(path, sha256, blob_name(path)) is not False
        if _state(path) == now:  # else it changed while it was read
            self._note(path, sha256, sound)
        return sha256, sound

    def _record(self, path: Path) -> Path:
        return self.root / ".verified" / f"{_digest(os.path.realpath(path))}.json"

    def _note(self, path: Path, sha256: str, sound: bool) -> None:
        with contextlib.suppress(InputError, OSError):  # a cache that cannot be written costs a hash per run, no more
            write(self._record(path), json.dumps({**_state(path), "sha256": sha256, "sound": sound}))

    def commits(self, asked: HubFile) -> list[str]:
        """Return the commits a revision has stood for in this cache, newest first."""
        if asked.pinned:
            return [asked.revision]
        try:
            dated = [(entry.stat().st_mtime_ns, entry.name) for entry in self._history(asked).iterdir()]
        except OSError:
            return []
        return [name for _, name in sorted(dated, reverse=True)]

    def _history(self, asked: HubFile) -> Path:
        return self.folder(asked) / "commits" / urllib.parse.quote(asked.revision, safe="")

    def partial(self, asked: HubFile, etag: str | None) -> Path:
        """Return where a file is collected; what older versions of it have left is removed."""
        return self.collected(asked, etag if etag and _is_checksum(etag) else f"unknown-{uuid.uuid4().hex}")

    def collected(self, asked: Asked, version: str) -> Path:
        """Return where a version of a file is collected; what other versions have left is removed."""
        folder = self._collecting(asked)
        mine = folder / f"{_digest(asked.file)}-{version}"
        for other in folder.glob(f"{_digest(asked.file)}-*"):
            if other != mine:
                other.unlink(missing_ok=True)
        return mine

    def arrived(self, asked: Asked, version: str) -> int:
        """Return how many bytes of a version of a file were left by a download that was stopped."""
        try:
            return (self.root / ".partial" / asked.folder / f"{_digest(asked.file)}-{version}").stat().st_size
        except OSError:
            return 0

    def _collecting(self, asked: Asked) -> Path:
        folder = self.root / ".partial" / self.folder(asked).name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def enter(self, content: Path, sha256: str, etag: str | None, asked: HubFile, commit: str) -> Fetched:
        """Move checked content into the cache as `asked` at `commit`. Raises OSError."""
        blob = self.folder(asked) / "blobs" / (etag if etag and _is_checksum(etag) else sha256)
        settle(content, blob)
        return self.link(blob, sha256, asked, commit)

    def blob(self, asked: HubFile, etag: str | None) -> tuple[Path, str] | None:
        """Return content that came with another commit of the repository, and its SHA-256; a damaged one is removed."""
        if not _is_checksum(etag):
            return None
        blob = self.folder(asked) / "blobs" / str(etag)
        if not blob.is_file():
            return None
        sha256, sound = self._digest_of(blob)
        if not sound:
            blob.unlink()
            return None
        return blob, sha256

    def link(self, blob: Path, sha256: str, asked: HubFile, commit: str) -> Fetched:
        """Make content visible as `asked` at `commit`, and remember which commit the revision stands for. Raises OSError."""
        path = self.folder(asked) / "snapshots" / commit / asked.file
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._collecting(asked) / f"link-{uuid.uuid4().hex}"
        try:
            _link(blob, temporary, path.parent)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._note(path, sha256, sound=True)
        self.remember(asked, commit)
        return Fetched(path=path, sha256=sha256, commit=commit, repo=asked.repo, file=asked.file)

    def remember(self, asked: HubFile, commit: str) -> None:
        """Note that a branch or a tag stands for a commit. Raises OSError."""
        if asked.pinned:
            return
        self._history(asked).mkdir(parents=True, exist_ok=True)
        (self._history(asked) / commit).touch()
        try:
            write(self.folder(asked) / "refs" / asked.revision, commit)
        except WriteError as error:
            raise WriteError(f"cannot download {asked.label}: {error}") from error


def settle(content: Path, final: Path) -> None:
    """Make a whole, checked file visible under its final name. Raises OSError."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with content.open("rb") as file:
        os.fsync(file.fileno())
    content.chmod(0o644)
    content.replace(final)


def no_room(asked: Asked, path: Path, error: OSError) -> WriteError:
    """Return the error of a cache that cannot take a file."""
    full = error.errno in NO_SPACE
    free = f" ({shutil.disk_usage(path.parent).free / 1e6:.0f} MB free)" if full and path.parent.exists() else ""
    reason = f"cannot write {path}: {error.strerror or error}{free}"
    return WriteError(f"cannot download {asked.label}: {reason}; {mended(error)}")


def _is_checksum(etag: str | None) -> bool:
    return etag is not None and (SHA256.fullmatch(etag) or SHA1.fullmatch(etag)) is not None


def _state(path: Path) -> dict[str, object]:
    """Return what of a file changes when its content does, and what says which content it should have."""
    return {"path": os.path.realpath(path), "state": state_of(path), "blob": blob_name(path)}


def _link(blob: Path, path: Path, final: Path) -> None:
    """Make `path`, which moves to the folder `final`, the content of `blob`: a relative link, else a hard link, else a copy."""
    try:
        path.symlink_to(os.path.relpath(blob, final))
    except OSError:
        try:
            os.link(blob, path)
        except OSError:
            shutil.copyfile(blob, path)


def blob_name(path: Path) -> str | None:
    """Return the name of the blob that a link of a snapshot leads to, by way of any number of links; None for a plain file."""
    for _ in range(20):
        if path.parent.name == "blobs":
            return path.name
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _commit(path: Path, file: str) -> str | None:
    name = path.parents[len(file.split("/")) - 1].name
    return name if SHA1.fullmatch(name) else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text)
