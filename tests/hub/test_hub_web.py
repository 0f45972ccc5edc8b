"""Downloads of single files of other servers, by address and MD5: the faults of a transfer, tokens, processes, places."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.hub import failures, web
from tests.conftest import ROOT
from tests.hub.test_hub import CONTENT, Sleeps
from tests.hub.test_hub import cache as cache
from tests.hub.test_hub import impatient as impatient
from tests.hub.test_hub import sleeps as sleeps
from tests.support.mirror import Mirror, pass_by
from tests.support.mirror import mirror as mirror

PATH = "cs_links/EMNIST/gzip.zip"
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def asked(mirror: Mirror) -> web.WebFile:
    """A file on the server that is not the hub."""
    return web.web_file(mirror.publish(PATH, CONTENT), MD5)


def visible(cache: Path) -> list[Path]:
    """Return the files of a cache that a reader can see."""
    hidden = (".partial", ".locks", ".verified")
    return [path for path in cache.rglob("*") if path.is_file() and not set(path.parts) & set(hidden)]


def partial(cache: Path) -> list[Path]:
    return [path for path in (cache / "archives/.partial").rglob("*") if path.is_file()]


def refused(asked: web.WebFile, cache: Path) -> str:
    """Return the one line that a download ends in, after checking what it names and that nothing is visible."""
    with pytest.raises(InputError) as caught:
        web.fetch(asked, cache)
    line = str(caught.value)
    assert "\n" not in line
    assert asked.url in line
    assert str(web.place(asked, cache)) in line
    assert visible(cache) == []
    return line


def test_a_file_arrives_by_two_requests_and_is_asked_for_once(mirror: Mirror, asked: web.WebFile, cache: Path) -> None:
    found = web.fetch(asked, cache)
    assert found == cache / "archives" / MD5 / "gzip.zip"
    assert found.read_bytes() == CONTENT
    assert [one.method for one in mirror.asked()] == ["HEAD", "GET"]
    assert (visible(cache), partial(cache)) == ([found], [])
    assert web.fetch(asked, cache) == web.present(asked, cache) == found
    assert len(mirror.asked()) == 2


PASSING = ["busy", "unavailable", "error", "truncated", "reset", "stall", "flipped", "silent", "drop", "whole", "beyond", "shifted"]


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("kind", PASSING)
def test_a_fault_that_passes_ends_in_the_right_file(
    kind: str, method: str, mirror: Mirror, asked: web.WebFile, cache: Path, request: pytest.FixtureRequest
) -> None:
    pass_by(mirror, kind, "*.zip", method, request)
    assert web.fetch(asked, cache).read_bytes() == CONTENT
    assert partial(cache) == []


LASTING = {
    "missing": "has no such file; check the address, which may have changed", "gated": "answered 401", "forbidden": "answered 403",
    "busy": "429 (too many requests) (tried 5 times)", "unavailable": "503", "error": "500", "truncated": "(tried 5 times)",
    "reset": "(tried 5 times)", "stall": "went silent", "silent": "HF_HUB_DOWNLOAD_TIMEOUT", "flipped": f"{MD5} is expected",
    "drop": "broke", "loop": "redirects without end", "login": f"{MD5} is expected",
}


@pytest.mark.parametrize(("kind", "words"), LASTING.items())
def test_a_fault_that_lasts_ends_in_one_line_after_few_requests(
    kind: str, words: str, mirror: Mirror, asked: web.WebFile, cache: Path, request: pytest.FixtureRequest
) -> None:
    if kind in ("stall", "silent"):
        request.getfixturevalue("impatient")
    mirror.inject(kind, "*.zip", times=1000, seconds=2, at=10)
    line = refused(asked, cache)
    assert words in line
    assert "HF_ENDPOINT" not in line
    assert "HF_TOKEN" not in line
    assert len(mirror.asked("*.zip", "HEAD")) <= 10
    assert len(mirror.asked("*.zip", "GET")) <= 6
    mirror.heal()
    assert web.fetch(asked, cache).read_bytes() == CONTENT


def test_a_server_that_cannot_be_reached_is_named(asked: web.WebFile, mirror: Mirror, cache: Path) -> None:
    mirror.close()
    line = refused(asked, cache)
    assert "cannot be reached" in line
    assert mirror.storage_url in line
    assert "and the address" in line


def test_another_content_than_the_expected_one_is_never_shown(mirror: Mirror, asked: web.WebFile, cache: Path) -> None:
    mirror.publish(PATH, CONTENT[::-1])
    line = refused(asked, cache)
    assert hashlib.md5(CONTENT[::-1]).hexdigest() in line
    assert MD5 in line
    assert partial(cache) == []


def test_what_has_arrived_is_continued_by_a_later_call(mirror: Mirror, asked: web.WebFile, cache: Path) -> None:
    mirror.inject("truncated", "*.zip", at=200_000)
    mirror.inject("forbidden", "*.zip", method="GET")
    refused(asked, cache)
    assert web.arrived(asked, cache) == 200_000
    assert web.present(asked, cache) is None
    assert web.fetch(asked, cache).read_bytes() == CONTENT
    assert mirror.asked(method="GET")[-1].headers["range"] == "bytes=200000-"
    assert web.arrived(asked, cache) == 0


def test_a_server_that_only_sends_files_is_enough(mirror: Mirror, asked: web.WebFile, cache: Path) -> None:
    mirror.inject("no_head", "*.zip", method="HEAD", times=1000)
    mirror.inject("truncated", "*.zip", at=100_000)
    assert web.fetch(asked, cache).read_bytes() == CONTENT
    assert mirror.asked(method="GET")[-1].headers["range"] == "bytes=100000-"


@pytest.mark.parametrize("method", ["HEAD", "GET", None])
def test_redirects_are_followed_and_the_token_goes_nowhere(
    method: str | None, mirror: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to another server, and not to the hub's own either, where an address may lead."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    there = mirror.publish(PATH, CONTENT)
    here = f"{mirror.url}/web/{PATH}"
    mirror.inject("redirect", "*.zip", method=method, location=here, times=1 if method else 2)
    assert web.fetch(web.web_file(there, MD5), cache).read_bytes() == CONTENT
    assert {one.server for one in mirror.log} == {"hub", "storage"}
    assert all("authorization" not in one.headers for one in mirror.log)
    assert not any("hf_secret" in value for one in mirror.log for value in one.headers.values())


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/gzip.zip", "http://[/gzip.zip"])
def test_a_redirect_to_no_address_is_named(location: str, mirror: Mirror, asked: web.WebFile, cache: Path) -> None:
    mirror.inject("redirect", "*.zip", method="HEAD", location=location, times=10)
    assert f"redirects to {location}, which is no address" in refused(asked, cache)


@pytest.mark.parametrize(("wanted", "low", "high"), [("7", 7, 7), ("soon", 0.5, 1), (None, 0.5, 1)])
def test_the_wait_a_server_asks_for_is_kept(
    wanted: str | None, low: float, high: float, mirror: Mirror, asked: web.WebFile, cache: Path, sleeps: Sleeps
) -> None:
    mirror.inject("unavailable", "*.zip", retry_after=wanted)
    web.fetch(asked, cache)
    assert len(sleeps) == 1
    assert low <= sleeps[0] <= high


def test_a_server_that_asks_for_an_hour_is_not_waited_for(mirror: Mirror, asked: web.WebFile, cache: Path, sleeps: Sleeps) -> None:
    mirror.inject("busy", "*.zip", times=1000, retry_after="3600")
    assert "asks to wait 3600 s" in refused(asked, cache)
    assert sleeps == []


def test_offline_nothing_is_asked_and_the_place_is_named(
    mirror: Mirror, asked: web.WebFile, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = refused(asked, cache)
    assert "is not there, and HF_HUB_OFFLINE forbids downloads" in line
    assert MD5 in line
    place = web.place(asked, cache)
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="has another MD5"):
        web.fetch(asked, cache)
    place.write_bytes(CONTENT)
    assert web.fetch(asked, cache) == place
    assert mirror.asked() == []


def test_a_damaged_file_in_its_place_is_fetched_again(mirror: Mirror, asked: web.WebFile, cache: Path) -> None:
    place = web.place(asked, cache)
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT[:-1] + b"x")
    assert web.fetch(asked, cache).read_bytes() == CONTENT


def test_a_disk_without_room_is_named_before_anything_is_written(
    asked: web.WebFile, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: real(path)._replace(free=1000))
    assert "has 0 MB free" in refused(asked, cache)
    assert partial(cache) == []


def test_a_cache_that_cannot_be_written_is_named(asked: web.WebFile, cache: Path) -> None:
    cache.write_text("a file in the place of the folder")
    with pytest.raises(InputError) as caught:
        web.fetch(asked, cache)
    assert asked.url in str(caught.value)
    assert str(cache) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_progress_is_told_in_megabytes(mirror: Mirror, cache: Path) -> None:
    content = CONTENT * 12
    told: list[tuple[str, int, int]] = []
    asked = web.web_file(mirror.publish("large.zip", content), hashlib.md5(content).hexdigest())
    web.fetch(asked, cache, lambda *what: told.append(what))
    assert {(name, total) for name, _, total in told} == {("large.zip of 127.0.0.1, MB", 4)}
    assert [done for _, done, _ in told] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("url", "md5", "words"),
    [
        ("ftp://host/a.zip", MD5, "no address"), ("host/a.zip", MD5, "no address"), ("https://host/a b.zip", MD5, "no address"),
        (7, MD5, "no address"), ("https://host/", MD5, "names no file"), ("https://host", MD5, "names no file"),
        ("https://host/a/%2e%2e", MD5, "names no file"), ("https://host/..%2fa.zip", MD5, "names no file"),
        ("https://host/a%5cb.zip", MD5, "names no file"), ("https://me:secret@host/a.zip", MD5, "name of a user"),
        ("https://host/a.zip?token=secret", MD5, "leave out what follows"),
        ("https://host/a.zip", MD5[:-1], "no MD5"), ("https://host/a.zip", MD5.upper(), "no MD5"),
        ("https://host/a.zip", None, "no MD5"),
    ],
)
def test_addresses_and_checksums_that_cannot_be(url: object, md5: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        web.web_file(url, md5)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


JOB = """
import sys
from pathlib import Path
from fusionbench_lite.hub import web
print(web.fetch(web.web_file(sys.argv[1], sys.argv[2]), Path(sys.argv[3])))
"""


def start(asked: web.WebFile, cache: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", JOB, asked.url, asked.md5, str(cache)]
    return subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=pipe, stderr=pipe, text=True)


def test_of_two_processes_one_downloads(mirror: Mirror, asked: web.WebFile, cache: Path) -> None:
    mirror.inject("slow", "*.zip", seconds=0.25)
    answers = [job.communicate(timeout=60) for job in [start(asked, cache), start(asked, cache)]]
    assert [out.strip() for out, _ in answers] == [str(web.place(asked, cache))] * 2, answers
    assert [one.method for one in mirror.asked()] == ["HEAD", "GET"]


def test_a_killed_download_leaves_nothing_visible_and_is_continued(mirror: Mirror, cache: Path) -> None:
    content = os.urandom(3_000_000)
    asked = web.web_file(mirror.publish(PATH, content), hashlib.md5(content).hexdigest())
    mirror.inject("slow", "*.zip", seconds=0.03)
    job = start(asked, cache)
    deadline = time.monotonic() + 60
    while web.arrived(asked, cache) < 500_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.communicate(timeout=60)
    assert visible(cache) == []
    held = web.arrived(asked, cache)
    assert web.fetch(asked, cache).read_bytes() == content
    assert mirror.asked(method="GET")[-1].headers["range"] == f"bytes={held}-"


def test_attempts_end_even_if_every_one_brings_something(
    mirror: Mirror, asked: web.WebFile, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "NEW_BYTES", 1)
    monkeypatch.setenv("FUSIONBENCH_LITE_RETRY_SECONDS", "0.001")
    mirror.inject("truncated", "*.zip", times=1000, at=10)
    assert "tried 30 times" in refused(asked, cache)
