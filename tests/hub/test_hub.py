"""Downloads through a local mirror: what arrives, what is asked, and that no fault leaves anything in a cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fusionbench_lite import hub
from fusionbench_lite.errors import InputError
from fusionbench_lite.hub import failures
from tests.support.mirror import Mirror, pass_by
from tests.support.mirror import mirror as mirror

REPO = "lab/clip"
FILE = "weights/model.safetensors"
CONTENT = bytes(range(256)) * 1200  # 300 kB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stalls are noticed after 0.3 s; too short for other tests on a machine with much to do."""
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.3")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.3")


@pytest.fixture
def filled(mirror: Mirror) -> Mirror:
    """A mirror with one repository of each kind."""
    mirror.put("model", REPO, FILE, CONTENT)
    mirror.put("model", REPO, "config.json", b'{"hidden_size": 8}')
    mirror.put("dataset", "lab/dtd", "data/test-00000-of-00001.parquet", CONTENT[::-1])
    return mirror


def visible(cache: Path) -> list[Path]:
    """Return what a reader of a cache can see, after checking that every blob is what its name says."""
    blobs = [path for path in cache.rglob("blobs/*") if path.is_file()]
    for blob in blobs:
        content = blob.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        assert blob.name in (hashlib.sha256(content).hexdigest(), git)
    return blobs + [path for path in cache.rglob("snapshots/*/**/*") if not path.is_dir()]


def partial(cache: Path) -> list[Path]:
    return [path for path in (cache / "hub" / ".partial").rglob("*") if path.is_file()]


def refused(mirror: Mirror, cache: Path, repo: str = REPO, file: str = FILE, **options: object) -> str:
    """Return the one line that a download ends in, after checking that it names what it is about and that nothing is visible."""
    before = visible(cache)
    with pytest.raises(InputError) as caught:
        hub.fetch(repo, file, cache=cache, **options)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    assert repo in line
    assert file in line
    assert visible(cache) == before
    assert visible(Path(os.environ["HF_HOME"])) == []
    return line


def test_a_file_arrives_with_its_checksum_and_commit_by_two_requests(filled: Mirror, cache: Path) -> None:
    found = hub.fetch(REPO, FILE, cache=cache)
    assert found.path.read_bytes() == CONTENT
    assert (found.sha256, found.commit) == (SHA256, filled.commit("model", REPO))
    assert (found.repo, found.file) == (REPO, FILE)
    assert [one.method for one in filled.asked()] == ["HEAD", "GET"]
    assert partial(cache) == []
    assert huggingface_hub.try_to_load_from_cache(REPO, FILE, cache_dir=cache / "hub") == str(found.path)


def test_a_dataset_file_arrives(filled: Mirror, cache: Path) -> None:
    found = hub.fetch("lab/dtd", "data/test-00000-of-00001.parquet", kind="dataset", cache=cache)
    assert found.path.read_bytes() == CONTENT[::-1]
    assert filled.asked("/datasets/lab/dtd/resolve/*", "GET")


def test_an_empty_file_arrives(filled: Mirror, cache: Path) -> None:
    filled.put("model", REPO, "empty.bin", b"")
    assert hub.fetch(REPO, "empty.bin", cache=cache).path.read_bytes() == b""


def test_a_second_fetch_asks_nothing_and_does_not_hash_again(filled: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.fetch(REPO, FILE, cache=cache)
    filled.log.clear()
    monkeypatch.setattr("fusionbench_lite.hub.store.file_sha256", lambda path: pytest.fail("hashed again"))
    assert hub.fetch(REPO, FILE, cache=cache, sha256=SHA256) == first == hub.present(REPO, FILE, cache=cache)
    assert filled.asked() == []


def test_present_makes_no_request(filled: Mirror, cache: Path) -> None:
    assert hub.present(REPO, FILE, cache=cache) is None
    assert filled.asked() == []


PASSING = ["busy", "unavailable", "error", "truncated", "reset", "stall", "flipped", "silent", "drop", "redirect", "loop", "whole",
           "beyond", "shifted", "larger"]


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("kind", PASSING)
def test_a_fault_that_passes_ends_in_the_right_file(
    kind: str, method: str, filled: Mirror, cache: Path, request: pytest.FixtureRequest
) -> None:
    pass_by(filled, kind, "*.safetensors", method, request)
    found = hub.fetch(REPO, FILE, cache=cache, sha256=SHA256, size=None if kind == "larger" else len(CONTENT))
    assert found.path.read_bytes() == CONTENT
    assert len(visible(cache)) == 2
    assert partial(cache) == []


LASTING = {
    "missing": "no such file", "no_repository": "no model repository", "no_revision": "no revision main",
    "gated": "accept the terms at https://huggingface.co/lab/clip and set HF_TOKEN", "forbidden": "accept the terms",
    "busy": "429 (too many requests) (tried 5 times)", "unavailable": "503", "error": "500", "truncated": "(tried 5 times)",
    "reset": "(tried 5 times)", "stall": "went silent", "silent": "HF_HUB_DOWNLOAD_TIMEOUT", "flipped": "checksum",
    "drop": "broke", "redirect": "redirects without end", "loop": "redirects without end", "login": "does not answer as a hub does",
    "larger": "307200 bytes came where 307201 were announced",
}


@pytest.mark.parametrize(("kind", "words"), LASTING.items())
def test_a_fault_that_lasts_ends_in_one_line_after_few_requests(
    kind: str, words: str, filled: Mirror, cache: Path, request: pytest.FixtureRequest
) -> None:
    if kind in ("stall", "silent"):
        request.getfixturevalue("impatient")
    filled.inject(kind, "*.safetensors", times=1000, seconds=2, at=10)
    assert words in refused(filled, cache)
    assert len(filled.asked("*.safetensors", "HEAD")) <= 10
    assert len(filled.asked("*.safetensors", "GET")) <= 6
    filled.heal()
    assert hub.fetch(REPO, FILE, cache=cache).path.read_bytes() == CONTENT


def test_damage_to_a_small_file_is_noticed_by_gits_hash(filled: Mirror, cache: Path) -> None:
    filled.inject("flipped", "*config.json", times=1000)
    assert "checksum" in refused(filled, cache, file="config.json")
    filled.heal()
    assert hub.fetch(REPO, "config.json", cache=cache).path.read_bytes() == b'{"hidden_size": 8}'


kinds = st.sampled_from(["truncated", "reset", "flipped", "whole", "beyond", "shifted", "busy", "drop"])
spoiled = st.tuples(kinds, st.integers(0, len(CONTENT) - 1))


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(spoiled, max_size=4))
def test_any_four_faults_end_in_the_right_file(faults: list[tuple[str, int]], filled: Mirror, tmp_path: Path) -> None:
    cache = tmp_path / f"cache-{os.urandom(8).hex()}"
    filled.heal()
    for kind, at in faults:
        filled.inject(kind, "*.safetensors", at=at)
    assert hub.fetch(REPO, FILE, cache=cache).path.read_bytes() == CONTENT
    assert len(visible(cache)) == 2


def test_what_has_arrived_is_continued(filled: Mirror, cache: Path) -> None:
    filled.inject("truncated", "*.safetensors", at=200_000)
    hub.fetch(REPO, FILE, cache=cache)
    first, second = filled.asked("*.safetensors", "GET")
    assert second.headers["range"] == "bytes=200000-"
    assert (first.sent, second.sent) == (200_000, 100 * 1000 + 7200)


def test_a_server_without_ranges_is_taken_at_its_word(filled: Mirror, cache: Path) -> None:
    filled.inject("truncated", "*.safetensors")
    filled.inject("whole", "*.safetensors")
    assert hub.fetch(REPO, FILE, cache=cache).path.read_bytes() == CONTENT
    assert [one.status for one in filled.asked(method="GET")] == [200, 200]


def test_what_has_arrived_before_a_failure_is_continued_later_but_not_for_another_version(filled: Mirror, cache: Path) -> None:
    filled.inject("truncated", "*.safetensors", at=100_000)
    filled.inject("gated", "*.safetensors", method="GET")
    refused(filled, cache)
    assert [path.stat().st_size for path in partial(cache)] == [100_000]
    filled.put("model", REPO, FILE, CONTENT[::-1])
    assert hub.fetch(REPO, FILE, cache=cache).path.read_bytes() == CONTENT[::-1]
    assert "range" not in filled.asked("*.safetensors", "GET")[-1].headers
    assert partial(cache) == []


def test_attempts_end_even_if_every_one_brings_something(filled: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "NEW_BYTES", 1)
    monkeypatch.setenv("FUSIONBENCH_LITE_RETRY_SECONDS", "0.001")
    filled.inject("truncated", "*.safetensors", times=1000, at=10)
    assert "tried 30 times" in refused(filled, cache)


class Sleeps(list[float]):
    """Records what a program waits, without waiting."""


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> Sleeps:
    slept = Sleeps()
    monkeypatch.setattr("fusionbench_lite.hub.failures.time.sleep", slept.append)
    monkeypatch.setenv("FUSIONBENCH_LITE_RETRY_SECONDS", "1")
    return slept


@pytest.mark.parametrize(
    ("asked", "low", "high"), [("7", 7, 7), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), ("soon", 0.5, 1), (None, 0.5, 1)]
)
def test_the_wait_a_server_asks_for_is_kept(
    asked: str | None, low: float, high: float, filled: Mirror, cache: Path, sleeps: Sleeps
) -> None:
    filled.inject("unavailable", "*.safetensors", retry_after=asked)
    hub.fetch(REPO, FILE, cache=cache)
    assert len(sleeps) == 1
    assert low <= sleeps[0] <= high


def test_a_server_that_asks_for_an_hour_is_not_waited_for(filled: Mirror, cache: Path, sleeps: Sleeps) -> None:
    filled.inject("busy", "*.safetensors", times=1000, retry_after="3600")
    assert "asks to wait 3600 s" in refused(filled, cache)
    assert sleeps == []


def test_waits_double_and_end(filled: Mirror, cache: Path, sleeps: Sleeps) -> None:
    filled.inject("error", "*.safetensors", times=1000)
    refused(filled, cache)
    assert len(sleeps) == 4
    assert all(2**k / 2 <= wait <= 2**k for k, wait in enumerate(sleeps))


@pytest.mark.parametrize("digits", [64, 8])
def test_another_checksum_than_expected_is_refused_before_anything_is_sent(digits: int, filled: Mirror, cache: Path) -> None:
    other = hashlib.sha256(b"other").hexdigest()[:digits]
    line = refused(filled, cache, sha256=other)
    assert SHA256 in line
    assert other in line
    assert filled.asked(method="GET") == []


@pytest.mark.parametrize("digits", [64, 8])
def test_the_expected_checksum_is_accepted_whole_or_in_part(digits: int, filled: Mirror, cache: Path) -> None:
    assert hub.fetch(REPO, FILE, cache=cache, sha256=SHA256[:digits].upper()).sha256 == SHA256


def test_another_size_than_expected_is_refused(filled: Mirror, cache: Path) -> None:
    line = refused(filled, cache, size=5)
    assert f"{len(CONTENT)} bytes" in line
    assert "5 are expected" in line


def test_a_small_file_is_compared_with_the_expected_checksum_and_stays_for_others(filled: Mirror, cache: Path) -> None:
    assert "is expected" in refused(filled, cache, file="config.json", sha256="0" * 64)
    hub.fetch(REPO, "config.json", cache=cache)
    assert "is expected" in refused(filled, cache, file="config.json", sha256="0" * 64)
    assert hub.present(REPO, "config.json", cache=cache) is not None


def test_a_cached_file_that_was_changed_is_fetched_again(filled: Mirror, cache: Path) -> None:
    found = hub.fetch(REPO, FILE, cache=cache)
    blob = found.path.resolve()
    blob.write_bytes(CONTENT[:-1] + b"x")
    assert hub.present(REPO, FILE, cache=cache) is None
    assert hub.fetch(REPO, FILE, cache=cache).path.read_bytes() == CONTENT
    assert len(visible(cache)) == 2


def test_progress_is_told_in_megabytes(filled: Mirror, cache: Path) -> None:
    filled.put("model", REPO, FILE, CONTENT * 12)
    told: list[tuple[str, int, int]] = []
    hub.fetch(REPO, FILE, cache=cache, report=lambda *what: told.append(what))
    assert {(name, total) for name, _, total in told} == {(f"{FILE} of {REPO}, MB", 4)}
    assert [done for _, done, _ in told] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("repo", "file", "options"),
    [("lab/clip/x", FILE, {}), ("../clip", FILE, {}), ("lab", "../secret", {}), (REPO, "/etc/passwd", {}), (REPO, "a\\b", {}),
     (REPO, "a//b", {}), (REPO, "", {}), ("", FILE, {}), (REPO, FILE, {"kind": "modell"}), (REPO, FILE, {"revision": "../../x"}),
     (REPO, FILE, {"revision": ""}), (REPO, FILE, {"sha256": "abc"}), (REPO, FILE, {"sha256": "z" * 64}),
     (REPO, FILE, {"size": -1}), ("lab/clip.git", FILE, {}), ("l" * 97, FILE, {})],
)  # fmt: skip
def test_names_that_no_hub_has_are_refused(repo: str, file: str, options: dict[str, object], filled: Mirror, cache: Path) -> None:
    with pytest.raises(InputError) as caught:
        hub.fetch(repo, file, cache=cache, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not cache.exists()
    assert filled.asked() == []
