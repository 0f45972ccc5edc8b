"""One attempt at a request: a file's description, its content, a list of files."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fusionbench_lite.hub.asked import COMMIT, SHA256, Asked, Entry, HubFile, WebFile
from fusionbench_lite.hub.failures import Failure, astray, endless, no_hub, of_answer, of_error
from fusionbench_lite.hub.settings import HubSettings, http, library, origin

_MOST_REDIRECTS = 10
_MOST_PAGES = 1000
_NO_HEAD = (405, 501)
_HUBS = frozenset({("https", "huggingface.co", 443), ("https", "hf.co", 443)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remote:
    """What a server says of a file: commit, ETag without quotes, size in bytes, where its content is, whether the token goes there.

    A file of no repository has an empty commit and no ETag that counts.
    """

    commit: str
    etag: str | None
    size: int | None
    url: str
    with_token: bool


def describe(asked: Asked, settings: HubSettings) -> Remote:
    """Ask for a file's description.

    Redirects are followed up to the reply that names the commit; one that leads to a storage host is kept as the content's address.
    The token goes to the endpoint and to huggingface.co, to no other host. For a file of no repository they are followed to their
    end; where the server cannot describe files, the size is not known. Raises Failure.
    """
    url = _address(asked, settings)
    for _ in range(_MOST_REDIRECTS):
        trusted = _trusted(url, settings)
        with _failing(settings):
            answer = _session().request(
                "HEAD", url, headers=settings.headers(trusted), timeout=settings.answer_timeout, follow_redirects=False
            )
        if answer.status_code in _NO_HEAD and isinstance(asked, WebFile):
            return Remote(commit="", etag=None, size=None, url=url, with_token=_trusted(url, settings))
        if answer.status_code >= 400:
            raise of_answer(answer, asked, settings)
        to = answer.headers.get("Location") if answer.is_redirect else None
        target = _target(url, to, settings)
        named = "X-Repo-Commit" in answer.headers
        if not to or (named and not _trusted(target, settings)):
            return _remote(answer, asked, settings, target)
        url = target
    raise endless(settings)


def _address(asked: Asked, settings: HubSettings) -> str:
    if isinstance(asked, WebFile):
        return asked.url
    address: str = library().hf_hub_url(
        asked.repo, asked.file, repo_type=asked.kind, revision=asked.revision, endpoint=settings.endpoint
    )
    return address


def _target(url: str, to: str | None, settings: HubSettings) -> str:
    """Return where a redirect leads. Raises Failure for an address that is none."""
    try:
        target = urllib.parse.urljoin(url, to) if to else url
    except ValueError:
        target = ""
    if origin(target) is None:
        raise astray(settings, to)
    return target


def _remote(answer: Any, asked: Asked, settings: HubSettings, url: str) -> Remote:
    headers = answer.headers
    if isinstance(asked, WebFile):
        return Remote(
            commit="", etag=None, size=_number(headers.get("Content-Length")), url=url, with_token=_trusted(url, settings)
        )
    commit = headers.get("X-Repo-Commit", "")
    if not COMMIT.fullmatch(commit):
        raise no_hub(settings.endpoint, f"the reply for {asked.file} has no X-Repo-Commit")
    etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"') or None
    length = headers.get("X-Linked-Size") or (None if answer.is_redirect else headers.get("Content-Length"))
    return Remote(commit=commit, etag=etag, size=_number(length), url=url, with_token=_trusted(url, settings))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def receive(remote: Remote, part: Path, asked: Asked, settings: HubSettings, arrived: Callable[[int], None]) -> None:
    """Bring a file's content to `part`, after what is there already; `arrived` is called with the bytes there are.

    Raises Failure, after which `part` holds what has arrived, and OSError where `part` cannot be written.
    """
    done = part.stat().st_size if part.exists() else 0
    if remote.size is not None and done > remote.size:
        part.unlink()
        done = 0
    if remote.size == done:
        part.touch()
        return
    headers = settings.headers(remote.with_token)
    if done:
        headers["range"] = f"bytes={done}-"
    with _failing(settings), _session().stream("GET", remote.url, headers=headers, timeout=settings.data_timeout) as answer:
        done = _start(answer, part, done, asked, settings)
        _check_room(part, remote, done)
        with part.open("ab" if done else "wb") as file:
            for chunk in answer.iter_bytes():
                done += len(chunk)
                if remote.size is not None and done > remote.size:
                    break
                file.write(chunk)
                arrived(done)
    if remote.size is not None and done != remote.size:
        if done > remote.size:
            part.unlink()
        raise Failure("size", f"{done} bytes came where {remote.size} were announced", "try later, or check proxies", again=True)


def _start(answer: Any, part: Path, done: int, asked: Asked, settings: HubSettings) -> int:
    """Return how many bytes of `part` an answer continues. Raises Failure for an answer that does not fit."""
    status = answer.status_code
    if status == 416:
        part.unlink(missing_ok=True)
        raise Failure("range", "the server has less of it than has arrived before", "try again", again=True)
    if status >= 400:
        if status in (401, 403, 404) and not _trusted(str(answer.request.url), settings):
            # Addresses at storage hosts are good for a while only: the next attempt asks for a new one.
            raise Failure("expired", f"the storage host answered {status}", "try again later", again=True)
        raise of_answer(answer, asked, settings)
    if status == 206:
        match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if match is None or int(match.group(1)) != done:
            part.unlink(missing_ok=True)
            raise Failure("range", "the server sent another part of it than was asked for", "try again", again=True)
        return done
    return 0


def _check_room(part: Path, remote: Remote, done: int) -> None:
    if remote.size is None:
        return
    free = shutil.disk_usage(part.parent).free
    if free < remote.size - done:
        part.unlink(missing_ok=True)
        reason = f"{part.parent} has {free / 1e6:.0f} MB free and {(remote.size - done) / 1e6:.0f} MB are missing"
        raise Failure("disk", reason, "free some space or choose another cache directory")


def commit_of(asked: HubFile, settings: HubSettings) -> str:
    """Return the commit that a revision stands for now. Raises Failure."""
    revision = urllib.parse.quote(asked.revision, safe="")
    answer = _json(f"{settings.endpoint}/api/{asked.kind}s/{asked.repo}/revision/{revision}", asked, settings)[0]
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise no_hub(settings.endpoint, "no commit in its reply")
    return commit


def listed(asked: HubFile, settings: HubSettings, pages: int = _MOST_PAGES) -> list[Entry]:
    """Return the files below a folder of a repository, of at most so many pages of the hub's list. Raises Failure."""
    folder = f"/{urllib.parse.quote(asked.file)}" if asked.file else ""
    base = f"{settings.endpoint}/api/{asked.kind}s/{asked.repo}/tree/{urllib.parse.quote(asked.revision, safe='')}{folder}"
    query, entries = "recursive=true&expand=false", []
    for _ in range(pages):
        rows, query = _json(f"{base}?{query}", asked, settings)
        if not isinstance(rows, list):
            raise no_hub(settings.endpoint, "its list of files is none")
        entries += [_entry(row, settings) for row in rows if not isinstance(row, dict) or row.get("type") == "file"]
        if not query:
            break
    return entries


def _entry(row: Any, settings: HubSettings) -> Entry:
    try:
        lfs = row.get("lfs") or {}
        sha256 = str(lfs.get("oid") or lfs.get("sha256") or "")
        return Entry(str(row["path"]), int(lfs.get("size", row["size"])), sha256 if SHA256.fullmatch(sha256) else None)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise no_hub(settings.endpoint, "its list of files is none") from None


def _json(url: str, asked: HubFile, settings: HubSettings) -> tuple[Any, str]:
    """Return a reply's content and the query of the list's next page, empty on the last one."""
    with _failing(settings):
        answer = _session().get(url, headers=settings.headers(), timeout=settings.answer_timeout)
    if answer.status_code >= 400:
        raise of_answer(answer, asked, settings)
    try:
        content = answer.json()
    except ValueError:
        raise no_hub(settings.endpoint, "its reply is no JSON") from None
    # Of the next page's address the query alone is used: the token must not follow an address that a reply chooses.
    return content, urllib.parse.urlsplit(answer.links.get("next", {}).get("url", "")).query


@contextlib.contextmanager
def _failing(settings: HubSettings) -> Iterator[None]:
    """Turn exceptions of the HTTP library into Failure."""
    library = http()
    try:
        yield
    except (library.HTTPError, library.InvalidURL, library.StreamError) as error:
        raise of_error(error, settings) from error


def _session() -> Any:
    return library().get_session()


def _trusted(url: str, settings: HubSettings) -> bool:
    """Whether the token may go to an address: same scheme, host and port as the endpoint, or the hub itself."""
    there = origin(url)
    return there is not None and (there in _HUBS or there == origin(settings.endpoint))
