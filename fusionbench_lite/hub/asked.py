"""What is asked of a hub or of another server, a file or a folder of a repository, and what its content has to be."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import urllib.parse
from pathlib import Path, PurePosixPath

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.hub.settings import origin

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SHA1 = re.compile(r"[0-9a-f]{40}")
MD5 = re.compile(r"[0-9a-f]{32}")
KINDS = {"model": "", "dataset": "datasets/"}
_SHORTEST_PREFIX = 8
_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?(?<!\.git)")
_LONGEST_NAME = 96


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file or, for listings, a folder of a repository. `revision` is a branch, a tag or a commit."""

    repo: str
    file: str
    kind: str
    revision: str

    @property
    def label(self) -> str:
        """How messages name it."""
        at = "" if self.revision == "main" else f" at {self.revision}"
        return f"{self.file or 'the file list'} of {self.kind} {self.repo}{at}"

    @property
    def title(self) -> str:
        """How a progress bar names it."""
        return f"{self.file} of {self.repo}"

    @property
    def folder(self) -> str:
        """The name of the folder in a cache that holds what belongs to it, as huggingface_hub spells it."""
        return "--".join([f"{self.kind}s", *self.repo.split("/")])

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return COMMIT.fullmatch(self.revision) is not None

    @property
    def page(self) -> str:
        """The repository's path on the hub's site."""
        return KINDS[self.kind] + self.repo

    def at(self, revision: str) -> HubFile:
        """Return the same file at another revision."""
        return dataclasses.replace(self, revision=revision)


@dataclasses.dataclass(frozen=True)
class WebFile:
    """A file at an address of the web, of no repository, that has to have this MD5 (what such files are published with)."""

    url: str
    md5: str

    @property
    def file(self) -> str:
        """The file's own name."""
        return urllib.parse.unquote(urllib.parse.urlsplit(self.url).path.rpartition("/")[2])

    @property
    def label(self) -> str:
        """How messages name it."""
        return self.url

    @property
    def title(self) -> str:
        """How a progress bar names it."""
        return f"{self.file} of {urllib.parse.urlsplit(self.url).hostname}"

    @property
    def folder(self) -> str:
        """The name of its folder in a cache."""
        return self.md5


Asked = HubFile | WebFile


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the content has to be, as far as it is known: SHA-256 (or its first digits) and size in bytes."""

    sha256: str | None = None
    size: int | None = None

    def agrees(self, sha256: str | None, size: int | None) -> bool:
        """Whether a checksum and a size, as far as they are known, are the wanted ones."""
        if self.size is not None and size is not None and size != self.size:
            return False
        return self.sha256 is None or sha256 is None or sha256.startswith(self.sha256)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file in a listing: path in the repository, size in bytes, SHA-256 where the hub knows it (large files)."""

    path: str
    size: int
    sha256: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file at hand: where it lies, its SHA-256, the commit it belongs to, the repository and the path therein."""

    path: Path
    sha256: str
    commit: str | None
    repo: str
    file: str


def hub_file(repo: str, file: str, kind: str, revision: str) -> HubFile:
    """Return a checked `HubFile`; an empty `file` is the whole repository. Raises InputError for names no hub can have."""
    if kind not in KINDS:
        raise InputError(f"{kind!r} is no kind of repository: {did_you_mean(kind, KINDS)}")
    parts = repo.split("/")
    if len(repo) > _LONGEST_NAME or len(parts) > 2 or not all(_NAME.fullmatch(part) for part in parts):
        raise InputError(f"{repo!r} is no name of a {kind} repository: write it as owner/name")
    if not _relative(file, empty=True):
        raise InputError(f"{file!r} is no path inside {kind} {repo}: write it relative to the repository, with forward slashes")
    if not _relative(revision) or re.search(r"\s", revision):
        raise InputError(f"{revision!r} is no revision of {kind} {repo}: give a branch, a tag or a commit of 40 hexadecimal digits")
    return HubFile(repo, file, kind, revision)


def web_file(url: object, md5: object) -> WebFile:
    """Return a checked `WebFile`. Raises InputError for an address that is none or names no file, and for an MD5 that is none.

    Names, passwords and queries in an address are refused, since messages and records repeat it.
    """
    if not isinstance(md5, str) or not MD5.fullmatch(md5):
        raise InputError(f"{md5!r} is no MD5: write its 32 hexadecimal digits in lower case")
    if not isinstance(url, str) or origin(url) is None or re.search(r"[\s\x00-\x1f]", url):
        raise InputError(f"{url!r} is no address of a file: it starts with http:// or https://")
    asked = WebFile(url, md5)
    parts = urllib.parse.urlsplit(url)
    if parts.username is not None:
        raise InputError(f"the address of {asked.file!r} holds the name of a user: leave it out")
    if parts.query or parts.fragment:
        raise InputError(f"the address of {asked.file!r} goes on after it: leave out what follows ? or #")
    if not _relative(asked.file) or "/" in asked.file:
        raise InputError(f"{url!r} names no file: write the address of the file itself")
    return asked


def entry_of(row: object) -> Entry:
    """Return the `Entry` of a row of a stored list. Raises ValueError for what is none."""
    if not isinstance(row, list) or len(row) != 3:
        raise ValueError("a row has a path, a size and a SHA-256")
    path, size, sha256 = row
    if not isinstance(path, str) or not _relative(path):
        raise ValueError(f"{path!r} is no path inside a repository")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"{size!r} is no size in bytes")
    if sha256 is not None and not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
        raise ValueError(f"{sha256!r} is no SHA-256")
    return Entry(path, size, sha256)


def wanted(asked: HubFile, sha256: str | None, size: int | None) -> Wanted:
    """Return a checked `Wanted`. Raises InputError for a checksum that is none."""
    if sha256 is not None and not re.fullmatch(rf"[0-9a-f]{{{_SHORTEST_PREFIX},64}}", sha256.lower()):
        raise InputError(
            f"{sha256!r} is no SHA-256 for {asked.label}: give all 64 hexadecimal digits or at least the first {_SHORTEST_PREFIX}"
        )
    if size is not None and size < 0:
        raise InputError(f"{size} is no size in bytes for {asked.label}")
    return Wanted(sha256.lower() if sha256 else None, size)


def fits_etag(path: Path, sha256: str, etag: str | None) -> bool | None:
    """Whether a file's content is what an ETag says; None where the ETag is no checksum.

    An ETag of 64 digits is the content's SHA-256 (large files), one of 40 digits git's hash of the content (small files); plain
    SHA-1 is taken too, since caching proxies write that.
    """
    if etag is None:
        return None
    if SHA256.fullmatch(etag):
        return sha256 == etag
    if SHA1.fullmatch(etag):
        return etag in _sha1s(path)
    return None


def _sha1s(path: Path) -> tuple[str, str]:
    """Return git's hash of a file's content and the plain SHA-1."""
    plain = hashlib.sha1(usedforsecurity=False)
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            plain.update(chunk)
            git.update(chunk)
    return git.hexdigest(), plain.hexdigest()


def _relative(path: str, empty: bool = False) -> bool:
    if not path:
        return empty
    pure = PurePosixPath(path)
    clean = not pure.is_absolute() and ".." not in pure.parts and str(pure) == path and path != "."
    return clean and not re.search(r"[\\\x00-\x1f]", path)
