"""A hub on 127.0.0.1 for tests: repositories from a folder, with every fault a download can meet.

The folder holds models/OWNER/NAME/... and datasets/OWNER/NAME/...; a repository's commit is a hash of its content. Files of the
kinds that the hub keeps in large-file storage have their SHA-256 as ETag, others git's hash. With `storage=True` the large ones are
redirected to a second server, on another port and so another host, as the hub does. `inject` makes the next requests fail.
Files below web/ are served by both servers under that path as any web server does, without a hub's headers.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support import mirror_server

LARGE = (".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".tar", ".zip")


@dataclasses.dataclass
class Request:
    """A request as it came, and what became of it: status and number of content bytes sent."""

    method: str
    path: str
    headers: dict[str, str]
    server: str
    status: int = 0
    sent: int = 0


@dataclasses.dataclass
class Fault:
    """What the next `times` requests meet whose path fits `pattern` (and whose method is `method`).

    Kinds: "missing", "no_repository", "no_revision" (404); "gated" (401), "forbidden" (403), "expired" (403, for the storage
    host); "busy" (429), "unavailable" (503), "error" (500), with Retry-After if `retry_after` is given. "truncated", "reset",
    "stall", "flipped", "slow" spoil the content: `at` bytes of it (half by default) come before, a stall lasts `seconds`, a slow
    answer waits as long every 64 KiB. "whole", "beyond", "shifted": a range request gets everything, 416, another part. "silent":
    no answer for `seconds`; "drop": a reset before an answer. "redirect": to the other server or to `location`, without a hub's
    headers; "loop": to itself. "larger": the announced size is one too many. "login": a page that no hub sends. "no_head": 405.
    """

    kind: str
    pattern: str = "*"
    times: int = 1
    method: str | None = None
    retry_after: str | None = None
    at: int | None = None
    seconds: float = 30.0
    location: str | None = None


_CONTENT = {"truncated", "reset", "stall", "flipped", "slow", "whole", "beyond", "shifted"}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A file of a repository at its present commit."""

    path: str
    file: Path
    size: int
    sha256: str
    git: str

    @property
    def large(self) -> bool:
        return self.path.endswith(LARGE)

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git


class Mirror:
    """The servers, their folder, their log and the faults that wait."""

    def __init__(self, root: Path, storage: bool = False, page: int = 1000) -> None:
        self.root = root
        self.storage = storage
        self.page = page
        self.tokens: dict[str, str] = {}
        self.log: list[Request] = []
        self.closing = threading.Event()
        self._faults: list[Fault] = []
        self._hashes: dict[Path, tuple[tuple[int, int], str, str]] = {}
        self._lock = threading.Lock()
        self.servers = [mirror_server.start(self, name) for name in ("hub", "storage")]
        self.url, self.storage_url = (_url(server) for server in self.servers)

    def close(self) -> None:
        """Stop answering; requests that hang end."""
        self.closing.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def put(self, kind: str, repo: str, path: str, content: bytes) -> Path:
        """Write a file of a repository; `kind` is "model" or "dataset"."""
        file = self.root / f"{kind}s" / repo / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def publish(self, path: str, content: bytes) -> str:
        """Write a file of no repository and return its address on the second server, which is not the hub."""
        file = self.root / "web" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return f"{self.storage_url}/web/{path}"

    def inject(self, kind: str, pattern: str = "*", times: int = 1, **options: object) -> None:
        """Let the next `times` requests whose path fits `pattern` (as in a shell) meet a fault."""
        if kind in _CONTENT:
            options.setdefault("method", "GET")
        with self._lock:
            self._faults.append(Fault(kind, pattern, times, **options))  # type: ignore[arg-type]

    def heal(self) -> None:
        """Forget the faults that still wait."""
        with self._lock:
            self._faults.clear()

    def fault(self, method: str, path: str) -> Fault | None:
        """Take the fault that a request meets, the oldest that fits."""
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.method in (None, method) and fnmatch.fnmatch(path, fault.pattern):
                    fault.times -= 1
                    return fault
        return None

    def note(self, request: Request) -> None:
        with self._lock:
            self.log.append(request)

    def asked(self, pattern: str = "*", method: str | None = None) -> list[Request]:
        """Return the requests so far whose path fits `pattern`."""
        with self._lock:
            return [one for one in self.log if fnmatch.fnmatch(one.path, pattern) and method in (None, one.method)]

    def files(self, kind: str, repo: str) -> dict[str, Stored] | None:
        """Return the files of a repository by path; None if there is no such repository."""
        folder = self.root / f"{kind}s" / repo
        if not folder.is_dir():
            return None
        found = {}
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                path = file.relative_to(folder).as_posix()
                found[path] = Stored(path, file, file.stat().st_size, *self._hash(file))
        return found

    def published(self, path: str) -> Stored | None:
        """Return a file of no repository, None where there is none."""
        file = self.root / "web" / path
        return Stored(path, file, file.stat().st_size, *self._hash(file)) if file.is_file() else None

    def commit(self, kind: str, repo: str) -> str:
        """Return the commit that a repository's branch stands for: 40 digits, other ones once the content has changed."""
        files = self.files(kind, repo) or {}
        return hashlib.sha1(repr([(one.path, one.sha256) for one in files.values()]).encode()).hexdigest()

    def _hash(self, file: Path) -> tuple[str, str]:
        state = file.stat()
        key = (state.st_size, state.st_mtime_ns)
        known = self._hashes.get(file)
        if known is None or known[0] != key:
            sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % state.st_size)
            with file.open("rb") as content:
                while chunk := content.read(1 << 20):
                    sha256.update(chunk)
                    git.update(chunk)
            known = (key, sha256.hexdigest(), git.hexdigest())
            self._hashes[file] = known
        return known[1:]

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables that make every Hugging Face library use this mirror, with caches below `home`."""
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_SAFETENSORS_CONVERSION": "1",
            "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "FUSIONBENCH_LITE_RETRY_SECONDS": "0.01",
        }


def _url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


UNSET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE",
         "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")


def pass_by(mirror: Mirror, kind: str, pattern: str, method: str, request: pytest.FixtureRequest) -> None:
    """Inject a fault that is over when the file is asked for again; silences are met with the fixture `impatient`."""
    if kind in ("stall", "silent"):
        request.getfixturevalue("impatient")
    if kind in ("whole", "beyond", "shifted"):  # these spoil a continued download
        mirror.inject("truncated", pattern)
    mirror.inject(kind, pattern, method=method, seconds=2, retry_after="0" if kind == "busy" else None)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """An empty mirror, and an environment in which this process and the ones it starts use it, with a cache of their own."""
    import huggingface_hub

    served = Mirror(tmp_path / "mirror")
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    for name, value in served.environment(tmp_path / "hf_home").items():
        monkeypatch.setenv(name, value)
    huggingface_hub.close_session()  # a session made before would keep the proxies of then
    yield served
    served.close()
    huggingface_hub.close_session()


def subprocess_environment(served: Mirror, home: Path, **more: str) -> dict[str, str]:
    """Return a whole environment for a process that uses a mirror."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return {**kept, **served.environment(home), **more}
