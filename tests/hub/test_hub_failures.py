"""Disks, endpoints, names and certificates that fail, and processes that download at once or are killed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionbench_lite import hub
from fusionbench_lite.errors import InputError
from fusionbench_lite.hub import failures
from fusionbench_lite.hub.settings import current, http
from tests.conftest import ROOT
from tests.hub.test_hub import FILE, REPO, SHA256, partial, refused, visible
from tests.hub.test_hub import cache as cache
from tests.hub.test_hub import filled as filled
from tests.hub.test_hub import impatient as impatient
from tests.support.mirror import Mirror
from tests.support.mirror import mirror as mirror


def test_a_disk_without_room_is_named_before_anything_is_sent(filled: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("fusionbench_lite.hub.transfer.shutil.disk_usage", lambda path: usage)
    assert "0 MB free" in refused(filled, cache)
    assert partial(cache) == []


def test_a_cache_that_cannot_be_written_is_named(filled: Mirror, cache: Path) -> None:
    cache.mkdir()
    (cache / "hub").write_text("a file where a folder has to be")
    assert "cannot write" in refused(filled, cache)


@pytest.mark.parametrize("folder", [".partial", "models--lab--clip", "models--lab--clip/blobs", "models--lab--clip/snapshots",
                                    "models--lab--clip/refs", "models--lab--clip/commits", ".locks"])
def test_any_part_of_a_cache_that_cannot_be_written_is_named(folder: str, filled: Mirror, cache: Path) -> None:
    path = cache / "hub" / folder
    path.parent.mkdir(parents=True)
    path.write_text("a file where a folder has to be")
    with pytest.raises(InputError, match=f"cannot download {FILE} of model {REPO}.*cannot write") as caught:
        hub.fetch(REPO, FILE, cache=cache)
    assert "\n" not in str(caught.value)
    visible(cache)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:1", "ftp://127.0.0.1", "http://[", "http://127.0.0.1:99999"])
def test_an_endpoint_that_is_no_address_is_named(
    endpoint: str, cache: Path, filled: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(InputError, match="HF_ENDPOINT"):
        hub.fetch(REPO, FILE, cache=cache)


@pytest.mark.parametrize(
    ("name", "value"), [("HF_HUB_DOWNLOAD_TIMEOUT", "soon"), ("HF_TOKEN", "hf_ä"), ("FUSIONBENCH_LITE_RETRY_SECONDS", "-1")]
)
def test_a_variable_that_cannot_be_used_is_named(
    name: str, value: str, cache: Path, filled: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=name):
        hub.fetch(REPO, FILE, cache=cache)


def test_a_name_that_nobody_knows_is_tried_again(filled: Mirror) -> None:
    failure = failures.of_error(http().ConnectError("[Errno -2] Name or service not known"), current())
    assert (failure.kind, failure.again) == ("unreachable", True)
    assert "Name or service not known" in failure.reason


def test_a_server_that_was_not_reached_is_tried_once_until_it_answers(monkeypatch: pytest.MonkeyPatch, filled: Mirror) -> None:
    monkeypatch.setattr(failures, "_unreachable", set())
    settings, asked, tried = dataclasses.replace(current(), wait=0.0), hub.HubFile(REPO, FILE, "model", "main"), []
    down = True

    def attempt() -> str:
        tried.append(down)
        if down:
            raise failures.of_error(http().ConnectError("no route"), settings)
        return "there"

    for times in (failures.ATTEMPTS, 1, 1):
        tried.clear()
        with pytest.raises(failures.Failure, match="cannot be reached"):
            failures.repeat(attempt, settings, asked)
        assert len(tried) == times
    down = False
    assert failures.repeat(attempt, settings, asked) == "there"
    down, tried = True, tried[:0]
    with pytest.raises(failures.Failure):
        failures.repeat(attempt, settings, asked)
    assert len(tried) == failures.ATTEMPTS


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_that_nobody_vouches_for_is_named(
    filled: Mirror, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    served = filled.servers[0]
    served.socket = context.wrap_socket(served.socket, server_side=True)
    monkeypatch.setenv("HF_ENDPOINT", filled.url.replace("http:", "https:"))
    assert "certificate" in refused(filled, cache)
    assert filled.asked() == []


@pytest.mark.parametrize("location", ["http://[", "ftp://127.0.0.1/x", "http://127.0.0.1:99999/x"])
def test_a_redirect_to_no_address_is_named(location: str, filled: Mirror, cache: Path) -> None:
    filled.inject("redirect", "*.safetensors", times=1000, location=location)
    assert f"it redirects to {location}" in refused(filled, cache)


JOB = """
import sys
from pathlib import Path
from fusionbench_lite import hub
from fusionbench_lite.errors import InputError
{before}
try:
    print(hub.fetch("lab/clip", "weights/model.safetensors", cache=Path(sys.argv[1])).sha256)
except InputError as error:
    print("refused:", error)
"""


def start(cache: Path, before: str = "") -> subprocess.Popen[str]:
    """Start a process that downloads; huggingface_hub wants whole seconds when it is imported."""
    seconds = {"HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    command = [sys.executable, "-c", JOB.format(before=before), str(cache)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **seconds}, stdout=pipe, stderr=pipe, text=True)


def test_of_two_processes_one_downloads(filled: Mirror, cache: Path) -> None:
    filled.inject("slow", "*.safetensors", seconds=0.25)
    answers = [job.communicate(timeout=60) for job in [start(cache), start(cache)]]
    assert [out.strip() for out, _ in answers] == [SHA256, SHA256], answers
    assert [one.method for one in filled.asked()] == ["HEAD", "GET"]
    assert len(visible(cache)) == 2


def test_a_killed_download_leaves_nothing_visible_and_is_continued(filled: Mirror, cache: Path) -> None:
    content = os.urandom(3_000_000)
    filled.put("model", REPO, FILE, content)
    filled.inject("slow", "*.safetensors", seconds=0.03)
    job = start(cache)
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size for path in partial(cache)) < 500_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.communicate(timeout=60)
    assert visible(cache) == []
    assert hub.present(REPO, FILE, cache=cache) is None
    held = sum(path.stat().st_size for path in partial(cache))
    assert hub.fetch(REPO, FILE, cache=cache).path.read_bytes() == content
    assert filled.asked(method="GET")[-1].headers["range"] == f"bytes={held}-"
    assert partial(cache) == []


def test_a_disk_that_fills_up_is_named_and_freed(filled: Mirror, cache: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))"
    out, err = start(cache, limit).communicate(timeout=60)
    assert out.startswith(f"refused: cannot download {FILE} of model {REPO}: cannot write"), err
    assert "File too large" in out
    assert len(out.splitlines()) == 1
    assert visible(cache) == []
    assert partial(cache) == []


def test_a_port_that_accepts_and_says_nothing(
    cache: Path, filled: Mirror, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        assert "went silent" in refused(filled, cache)
