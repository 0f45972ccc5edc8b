"""Archives that are not as expected, that are unpacked half, or by several at once."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from fusionbench_lite.data import vision
from fusionbench_lite.data.vision.archive import PublishedArchive
from tests.conftest import ROOT
from tests.data.test_vision_archive import PATH, SIZE, refused, served, unpacked
from tests.support.mirror import Mirror
from tests.support.mirror import mirror as mirror
from tests.support.vision_archive import members, name, raw_files, zipped

IMAGES = f"gzip/{name('test', 'images')}.gz"
TRAINING = f"gzip/{name('train', 'images')}.gz"


# ---------------------------------------------------------------- archives that are not as expected


def longer(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content) + b"\0")


def shorter(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:-1])


def reshaped(content: bytes) -> bytes:
    raw = bytearray(gzip.decompress(content))
    raw[11] -= 1  # rows of 28 become rows of 27
    return gzip.compress(bytes(raw))


def flipped(content: bytes) -> bytes:
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


def bomb(content: bytes) -> bytes:
    """Return a gzipped gigabyte of zeros behind the right header."""
    header = gzip.decompress(content)[:16]
    return gzip.compress(header + bytes(1 << 26)) + gzip.compress(bytes(1 << 26)) * 15


DAMAGES = {
    "longer": (longer, "unpacks to more than the 15,696 bytes that are expected"),
    "shorter": (shorter, "unpacks to 15,695 bytes, and 15,696 are expected"),
    "another shape": (reshaped, "does not begin as an idx file of shape [20, 28, 28] does"),
    "another checksum": (flipped, "CRC check failed"),
    "no gzip": (lambda content: b"plain" + content, "Not a gzipped file"),
    "cut off": (lambda content: content[: len(content) // 2], "cannot be unpacked"),
    "empty": (lambda content: b"", "does not begin as an idx file"),
    "bomb": (bomb, "unpacks to more than"),
    "too large": (lambda content: bytes(3 << 20), "has 3,145,728 bytes, and about 15,696 are expected at most"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_members_that_are_not_as_expected_are_refused(damage, words: str, mirror: Mirror, tmp_path: Path):
    content = members()
    content[IMAGES] = damage(content[IMAGES])
    given = served(mirror, tmp_path, zipped(content))
    line = refused(given)
    assert words in line
    assert IMAGES in line
    assert f"{mirror.storage_url}/web/{PATH}" in line
    assert unpacked(given) == []
    assert sum(path.stat().st_size for path in (given.cache / "archives").rglob("emnist-*/**/*") if path.is_file()) == 0


def test_a_missing_member_is_named(mirror: Mirror, tmp_path: Path):
    content = members()
    del content[TRAINING]
    given = served(mirror, tmp_path, zipped(content))
    assert f"it has no member {TRAINING} (it holds gzip/" in refused(given)
    assert unpacked(given) == []


@pytest.mark.parametrize("content", [b"no zip file at all", b"", zipped(members())[:-30]])
def test_a_file_of_the_right_md5_that_is_no_archive_is_named(content: bytes, mirror: Mirror, tmp_path: Path):
    line = refused(served(mirror, tmp_path, content, about=7))
    assert "gzip.zip cannot be unpacked" in line
    assert hashlib.md5(content).hexdigest() in line


def test_an_encrypted_member_is_named(mirror: Mirror, tmp_path: Path):
    content = bytearray(zipped(members()))
    name_at = content.rindex(IMAGES.encode())  # in the directory at the end; its flags are 38 bytes before the name
    content[name_at - 46 + 8] |= 1
    assert "is encrypted" in refused(served(mirror, tmp_path, bytes(content)))


def test_names_in_the_archive_lead_nowhere(mirror: Mirror, tmp_path: Path):
    """Members are taken by the names of the table; others, wherever they point, are not unpacked."""
    content = {"../../../evil": b"x", f"{tmp_path}/evil": b"x", "/evil": b"x", **members()}
    given = served(mirror, tmp_path, zipped(content))
    vision.load("emnist", given, None, SIZE)
    assert {path.name for path in unpacked(given)} == set(raw_files())
    assert not list(tmp_path.rglob("*evil*"))


def test_a_stopped_unpacking_leaves_nothing(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = served(mirror, tmp_path)
    plain, done = zipfile.ZipFile.open, []

    def full(*arguments: object, **options: object):
        done.append(1)
        if len(done) == 3:
            raise OSError(28, "No space left on device")
        return plain(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", full)
        assert "No space left on device" in refused(given)
    assert unpacked(given) == []
    vision.load("emnist", given, None, SIZE)
    assert len(mirror.asked()) == 2


JOB = """
import sys
from pathlib import Path
from fusionbench_lite.data import vision
given = vision.Sources("tall", Path(sys.argv[1]), tasks_file=Path(sys.argv[2]))
print(vision.load("emnist", given, None, 32).sha256)
"""


@pytest.mark.slow  # two processes import torch; one that fetches is in tests/hub, one that unpacks in the next test
def test_of_two_processes_one_fetches_and_unpacks(mirror: Mirror, tmp_path: Path):
    given = served(mirror, tmp_path)
    mirror.inject("slow", "*.zip", seconds=0.5)
    command = [sys.executable, "-c", JOB, str(given.cache), str(given.tasks_file)]
    pipe = subprocess.PIPE
    jobs = [subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    answers = [job.communicate(timeout=120) for job in jobs]
    assert answers[0][0] == answers[1][0], answers
    assert len(answers[0][0].strip()) == 64, answers
    assert [one.method for one in mirror.asked()] == ["HEAD", "GET"]


def test_threads_that_ask_at_once_unpack_once(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = served(mirror, tmp_path)
    found: list[str] = []
    plain, times = PublishedArchive._unpack, []
    monkeypatch.setattr(PublishedArchive, "_unpack", lambda *these: (times.append(1), plain(*these))[1])
    threads = [threading.Thread(target=lambda: found.append(vision.load("emnist", given, None, SIZE).sha256)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(times) == 1
    assert [one.method for one in mirror.asked()] == ["HEAD", "GET"]
