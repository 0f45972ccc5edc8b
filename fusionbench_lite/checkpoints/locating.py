"""Where the source of a converted file is: in the user's folder, in a cache, or on the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from fusionbench_lite import hub
from fusionbench_lite.base.file_hashes import remembered
from fusionbench_lite.checkpoints.api import Report
from fusionbench_lite.checkpoints.families import Base, Family, Place, Published
from fusionbench_lite.errors import InputError

UNKNOWN = Published()
NAMED_BY = {"expert": 2, "head": 1, "pretrained": 1, "base": 2}
"""How many of the last parts of a path make it clear which file it is, without the folders above them."""


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file at hand. `origin` is "repo:path" or a local path, `where` the same with the commit."""

    path: Path
    sha256: str
    origin: str
    where: str


@dataclasses.dataclass(frozen=True)
class Offer:
    """A file that a repository may have."""

    repo: str
    file: str
    published: Published = UNKNOWN
    about: int | None = None

    @property
    def origin(self) -> str:
        """How converted files name their source."""
        return f"{self.repo}:{self.file}"


def offer(family: Family, place: Place, model: str, task: str, kind: str) -> Offer | None:
    """Return the expert or head of a task that a place may have."""
    pattern = place.expert if kind == "expert" else place.head
    if pattern is None:
        return None
    file = family.fill(pattern, model, task)
    about = family.about.get(model) if kind == "expert" else None
    return Offer(family.fill(place.repo, model, task), file, place.files.get(file, UNKNOWN), about)


def base_offers(base: Base) -> list[Offer]:
    """Return the files of a pretrained model in the order in which they are tried."""
    return [Offer(base.repo, file, base.published.get(file, UNKNOWN), base.about) for file in base.files]


def local_patterns(family: Family, model: str, task: str | None, kind: str) -> list[str]:
    """Return the paths, below the user's folder, under which a file is looked for; the folders above may be missing."""
    if kind == "pretrained":
        return [family.fill(pattern, model) for pattern in family.pretrained]
    if kind == "base":
        return [f"{family.bases[model].repo}/{file}" for file in family.bases[model].files]
    patterns = []
    for place in family.places_of(model):
        made = offer(family, place, model, task or "", kind)
        if made is not None:
            patterns.append(made.file if "/" in made.file or kind == "head" else f"{made.repo}/{made.file}")
    return list(dict.fromkeys(patterns))


def in_folder(folder: Path, patterns: Iterable[str], kind: str) -> Path | None:
    """Return the file of a pattern below a folder, whatever the case of its names, with or without the leading folders."""
    for pattern in patterns:
        parts = pattern.split("/")
        for first in range(len(parts) - NAMED_BY[kind] + 1):
            path = _descend(folder, parts[first:])
            if path is not None:
                return path
    return None


def local_head(folder: Path, family: Family, model: str, task: str, expert: Path) -> Path | None:
    """Return the head of a task in the user's folder: where its publisher has it, else beside the folder of the expert."""
    patterns = local_patterns(family, model, task, "head")
    head = in_folder(folder, patterns, "head")
    return head or in_folder(expert.parent.parent, [pattern.rsplit("/", 1)[-1] for pattern in patterns], "head")


def _descend(folder: Path, parts: list[str]) -> Path | None:
    exact = folder.joinpath(*parts)
    if exact.is_file():
        return exact
    if not parts:
        return folder if folder.is_file() else None
    try:
        matching = sorted(entry for entry in folder.iterdir() if entry.name.casefold() == parts[0].casefold())
    except OSError:
        return None
    return next((path for entry in matching if (path := _descend(entry, parts[1:])) is not None), None)


def in_listing(paths: Iterable[str], pattern: str, kind: str) -> str | None:
    """Return the path that a pattern means: the same, else equal whatever the case, else with the longest end in common.

    Raises InputError where several paths are as good: which of them is meant decides the result.
    """
    paths, wanted = list(paths), pattern.casefold().split("/")
    if pattern in paths:
        return pattern
    ends = [wanted[first:] for first in range(max(len(wanted) - NAMED_BY[kind], 0) + 1)]
    for matches in (
        [path for path in paths if path.casefold().split("/") == wanted],
        *([path for path in paths if path.casefold().split("/")[-len(end):] == end] for end in ends),
    ):
        if len(matches) > 1:
            raise InputError(
                f"{pattern} may be {matches[0]} or {matches[1]}: write the one that is meant into a manifest (checkpoints.manifest)"
            )
        if matches:
            return matches[0]
    return None


def local(path: Path, cache: Path, published: Published | None = None) -> SourceFile:
    """Return a local file as a source; raises InputError when it is not the file that its publisher tells of.

    Its hash is remembered in the cache folder for as long as the file stays as it is.
    """
    try:
        size, sha256 = path.stat().st_size, remembered(path, cache)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if published is not None:
        check_published(str(path), size, sha256, published)
    return SourceFile(path, sha256, str(path), str(path))


def check_published(who: str, size: int, sha256: str, published: Published) -> None:
    """Raise InputError where a file has another size or hash than its publisher's."""
    fix = "fetch it again, or name a manifest of your own (checkpoints.manifest) if the file is meant"
    if published.size is not None and size != published.size:
        raise InputError(f"{who} has {size:,} bytes, the published file {published.size:,}: {fix}")
    if published.sha256 is not None and not sha256.startswith(published.sha256):
        raise InputError(f"{who} has SHA-256 {sha256[:12]}..., the published file {published.sha256[:12]}...: {fix}")


class Hub:
    """The repositories of a run, each listed once."""

    def __init__(self, cache: Path, report: Report | None) -> None:
        self.cache, self.report = cache, report
        self._listings: dict[str, tuple[str, ...] | InputError] = {}

    def listing(self, repo: str) -> tuple[str, ...]:
        """Return the paths of a repository's files; raises the same InputError every time when they cannot be had."""
        if repo not in self._listings:
            try:
                self._listings[repo] = tuple(entry.path for entry in hub.tree(repo, cache=self.cache))
            except InputError as error:
                self._listings[repo] = error
        files = self._listings[repo]
        if isinstance(files, InputError):
            raise files
        return files

    def resolved(self, wanted: Offer, kind: str) -> Offer | None:
        """Return the offer under the path that the repository spells; None where it has no such file."""
        file = in_listing(self.listing(wanted.repo), wanted.file, kind)
        return None if file is None else dataclasses.replace(wanted, file=file)

    def present(self, wanted: Offer) -> SourceFile | None:
        """Return the file if a cache holds it; no network."""
        published = wanted.published
        fetched = hub.present(wanted.repo, wanted.file, cache=self.cache, sha256=published.sha256, size=published.size)
        return None if fetched is None else _source(fetched, wanted)

    def fetch(self, wanted: Offer) -> SourceFile:
        """Return the file, downloaded where no cache holds it; raises InputError."""
        published = wanted.published
        fetched = hub.fetch(
            wanted.repo, wanted.file, cache=self.cache, sha256=published.sha256, size=published.size, report=self.report
        )
        return _source(fetched, wanted)


def _source(fetched: hub.Fetched, wanted: Offer) -> SourceFile:
    check_published(f"{wanted.origin}", fetched.path.stat().st_size, fetched.sha256, wanted.published)
    where = f"{wanted.repo}@{fetched.commit}:{wanted.file}" if fetched.commit else wanted.origin
    return SourceFile(fetched.path, fetched.sha256, wanted.origin, where)


def published_of(family: Family, model: str, task: str, kind: str, path: Path) -> Published | None:
    """Return what is published of a file in the user's folder: of one whose path ends as the publisher's does."""
    for place in family.places_of(model):
        made = offer(family, place, model, task, kind)
        end = made.file.casefold().split("/") if made is not None else []
        parts = [part.casefold() for part in path.absolute().parts[-len(end):]]
        if made is not None and made.published != UNKNOWN and parts == end:
            return made.published
    return None


def why_missing(reasons: Mapping[str, str]) -> str:
    """Return what was tried, in one line."""
    return "; ".join(f"{place}: {reason}" for place, reason in reasons.items())
