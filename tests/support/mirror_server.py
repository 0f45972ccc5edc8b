"""The requests that `tests.mirror` answers, and how their answers are spoiled."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from tests.support.mirror import Fault, Mirror, Stored

_BLOCK = 1 << 16
_REFUSALS = {
    "missing": (404, "EntryNotFound"), "no_repository": (404, "RepoNotFound"), "no_revision": (404, "RevisionNotFound"),
    "gated": (401, "GatedRepo"), "forbidden": (403, ""), "busy": (429, ""), "unavailable": (503, ""), "error": (500, ""),
    "expired": (403, ""), "no_head": (405, ""),
}


class _Gone(Exception):
    """The connection was closed on purpose."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up, and connections reset on purpose, are what the mirror is for."""


def start(mirror: Mirror, name: str) -> ThreadingHTTPServer:
    """Start a server on a free port; `name` is "hub" or "storage"."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"mirror": mirror, "name": name}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    mirror: Mirror
    name: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the mirror has its own log."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def _handle(self) -> None:
        from tests.support.mirror import Request

        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        self.record = Request(self.command, path, {key.lower(): value for key, value in self.headers.items()}, self.name)
        self.mirror.note(self.record)
        with contextlib.suppress(_Gone, ConnectionError):
            fault = self.mirror.fault(self.command, path)
            if fault is None or not self._before(fault):
                self._route(url.path, dict(urllib.parse.parse_qsl(url.query)), body, fault)

    def _before(self, fault: Fault) -> bool:
        """Answer in a hub's place; return whether the request is done with."""
        if fault.kind in _REFUSALS:
            self._refuse(*_REFUSALS[fault.kind], retry_after=fault.retry_after)
        elif fault.kind == "silent":
            self.mirror.closing.wait(fault.seconds)
            self._hang_up()
        elif fault.kind == "drop":
            self._reset()
        elif fault.kind in ("redirect", "loop"):
            there = self.mirror.storage_url if fault.kind == "redirect" and self.name == "hub" else ""
            self._answer(302, b"", {"Location": fault.location or there + self.path})
        elif fault.kind == "login":
            self._answer(200, b"<html>Sign in to the network</html>", {"Content-Type": "text/html"})
        else:
            return False
        return True

    def _route(self, path: str, query: dict[str, str], body: bytes, fault: Fault | None) -> None:
        if match := re.fullmatch(r"/storage/([0-9a-f]{64})/(.+)", path):
            self._from_storage(match.group(1), fault)
        elif path.startswith("/web/"):
            self._plain(urllib.parse.unquote(path.removeprefix("/web/")), fault)
        elif match := re.fullmatch(r"/api/(model|dataset)s/([^/]+(?:/[^/]+)?)(?:/(revision|tree|paths-info|refs)(/.*)?)?", path):
            kind, repo, what, rest = match.groups()
            self._api(kind, repo, what or "revision", (rest or "").lstrip("/"), query, body)
        elif match := re.fullmatch(r"/(?:(datasets)/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path):
            folder, repo, revision, file = match.groups()
            self._resolve("dataset" if folder else "model", repo, urllib.parse.unquote(revision), urllib.parse.unquote(file), fault)
        else:
            self._refuse(404, "")

    def _repository(self, kind: str, repo: str, revision: str) -> dict[str, Stored] | None:
        """Return a repository's files, or None after a refusal."""
        files = self.mirror.files(kind, repo)
        wanted = self.mirror.tokens.get(repo)
        if files is None:
            self._refuse(404, "RepoNotFound")
        elif wanted is not None and self.headers.get("Authorization") != f"Bearer {wanted}" and self.name == "hub":
            self._refuse(401, "GatedRepo")
        elif revision not in ("main", self.mirror.commit(kind, repo)):
            self._refuse(404, "RevisionNotFound")
        else:
            return files
        return None

    def _resolve(self, kind: str, repo: str, revision: str, path: str, fault: Fault | None) -> None:
        files = self._repository(kind, repo, revision)
        if files is None:
            return
        commit = {"X-Repo-Commit": self.mirror.commit(kind, repo)}
        stored = files.get(path)
        if stored is None:
            self._refuse(404, "EntryNotFound", commit)
            return
        headers = {**commit, "ETag": f'"{stored.etag}"'}
        if stored.large:
            size = stored.size + (fault is not None and fault.kind == "larger")
            headers |= {"X-Linked-Etag": f'"{stored.sha256}"', "X-Linked-Size": str(size)}
        if stored.large and self.mirror.storage and self.name == "hub":
            name = path.rpartition("/")[2]
            self._answer(302, b"", {**headers, "Location": f"{self.mirror.storage_url}/storage/{stored.sha256}/{name}?sign=1"})
        else:
            self._content(stored, headers, fault)

    def _from_storage(self, sha256: str, fault: Fault | None) -> None:
        for kind in ("model", "dataset"):
            for folder in (self.mirror.root / f"{kind}s").glob("*/*"):
                for stored in (self.mirror.files(kind, f"{folder.parent.name}/{folder.name}") or {}).values():
                    if stored.sha256 == sha256:
                        self._content(stored, {"ETag": f'"{sha256[:32]}"'}, fault)
                        return
        self._refuse(404, "")

    def _plain(self, path: str, fault: Fault | None) -> None:
        stored = self.mirror.published(path)
        if stored is None:
            self._refuse(404, "")
        else:
            self._content(stored, {"ETag": f'"{stored.size:x}-5c0d0b0a"', "Last-Modified": "Thu, 01 Jun 2017 12:00:00 GMT"}, fault)

    def _content(self, stored: Stored, headers: dict[str, str], fault: Fault | None) -> None:
        """Send a file, whole or the range that was asked for, in blocks."""
        kind = fault.kind if fault else ""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last, status = 0, stored.size - 1, 200
        if asked and kind != "whole":
            first, last = int(asked.group(1)), min(int(asked.group(2) or last), last)
            if first > last or kind == "beyond":
                self._answer(416, b"", {"Content-Range": f"bytes */{stored.size}"})
                return
            first -= kind == "shifted"
            status, headers = 206, {**headers, "Content-Range": f"bytes {first}-{last}/{stored.size}"}
        length = last + 1 - first
        about = {"Accept-Ranges": "bytes", "Content-Length": str(length), "Content-Type": "application/octet-stream"}
        self._head(status, {**about, **headers})
        if self.command == "HEAD":
            return
        with stored.file.open("rb") as file:
            file.seek(first)
            self._send(file, length, fault)

    def _send(self, file: BinaryIO, length: int, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        at = length // 2 if fault is None or fault.at is None else min(fault.at, length)
        while self.record.sent < length:
            here = self.record.sent
            stop = at if kind in ("truncated", "reset", "stall", "flipped") and here < at else length
            block = file.read(min(_BLOCK, stop - here))
            if here == at and fault is not None:
                if kind == "flipped":
                    block = bytes([block[0] ^ 1]) + block[1:]
                elif kind in ("truncated", "reset", "stall"):
                    self._interrupt(fault)
            if fault is not None and kind == "slow" and self.mirror.closing.wait(fault.seconds):
                raise _Gone
            self.wfile.write(block)
            self.record.sent += len(block)

    def _interrupt(self, fault: Fault) -> None:
        self.wfile.flush()
        if fault.kind == "stall":
            self.mirror.closing.wait(fault.seconds)
        if fault.kind == "reset":
            self._reset()
        self._hang_up()

    def _api(self, kind: str, repo: str, what: str, rest: str, query: dict[str, str], body: bytes) -> None:
        revision, _, folder = rest.partition("/")
        revision = urllib.parse.unquote(revision) or "main"
        files = self._repository(kind, repo, "main" if what == "refs" else revision)
        if files is None:
            return
        commit = self.mirror.commit(kind, repo)
        if what == "revision":
            self._json({"id": repo, "modelId": repo, "_id": commit[:24], "sha": commit, "private": False, "gated": False,
                        "disabled": False, "tags": [], "downloads": 0, "likes": 0, "lastModified": "2024-01-01T00:00:00.000Z",
                        "siblings": [{"rfilename": path} for path in files]})
        elif what == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
            self._json({"branches": [main], "tags": [], "converts": []})
        elif what == "paths-info":
            self._json([_row(files[path]) for path in _paths(body) if path in files])
        else:
            self._tree(files, urllib.parse.unquote(folder).strip("/"), query)

    def _tree(self, files: dict[str, Stored], folder: str, query: dict[str, str]) -> None:
        inside = f"{folder}/" if folder else ""
        below = {path[len(inside):]: stored for path, stored in files.items() if path.startswith(inside)}
        if folder and not below:
            self._refuse(404, "EntryNotFound")
            return
        recursive = query.get("recursive", "").lower() in ("1", "true")
        folders = {"/".join(parts[:depth]) for path in below if (parts := path.split("/")) for depth in range(1, len(parts))}
        rows = [{"type": "directory", "path": inside + name, "size": 0, "oid": "0" * 40}
                for name in sorted(folders) if recursive or "/" not in name]
        rows += [_row(stored) for path, stored in below.items() if recursive or "/" not in path]
        start = int(query.get("cursor", 0))
        end = start + self.mirror.page
        more = {}
        if end < len(rows):
            again = urllib.parse.urlencode({**query, "cursor": end})
            more = {"Link": f'<{self.mirror.url}{urllib.parse.urlsplit(self.path).path}?{again}>; rel="next"'}
        self._json(rows[start:end], more)

    def _json(self, content: object, headers: dict[str, str] | None = None) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None, retry_after: str | None = None) -> None:
        more = dict(headers or {})
        if code:
            more |= {"X-Error-Code": code, "X-Error-Message": f"refused:\n {code}"}
        if retry_after is not None:
            more["Retry-After"] = retry_after
        self._answer(status, json.dumps({"error": code or str(status)}).encode(), {"Content-Type": "application/json", **more})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, {"Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.record.status = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _hang_up(self) -> None:
        self.close_connection = True
        raise _Gone

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wfile.flush()
        self.rfile.close()
        self.connection.close()
        raise _Gone


def _row(stored: Stored) -> dict[str, object]:
    row: dict[str, object] = {"type": "file", "path": stored.path, "size": stored.size, "oid": stored.git}
    if stored.large:
        row["lfs"] = {"oid": stored.sha256, "size": stored.size, "pointerSize": 134}
    return row


def _paths(body: bytes) -> list[str]:
    """Return the paths that a request names, as JSON or as a form."""
    try:
        return list(json.loads(body)["paths"])
    except ValueError:
        return urllib.parse.parse_qs(body.decode()).get("paths", [])
