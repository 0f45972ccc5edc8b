"""Hashes of files that are remembered: what makes them be computed again, and what is not trusted."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from fusionbench_lite.base import file_hashes
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import file_sha256

AT_REST = -10_000_000_000
"""A grain, in nanoseconds, with which a file that was just written counts as at rest."""


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are hashed; all of them are at rest."""
    seen: list[Path] = []

    def count(path: Path) -> str:
        seen.append(path)
        return file_sha256(path)

    monkeypatch.setattr(file_hashes, "file_sha256", count)
    monkeypatch.setattr(file_hashes, "GRAIN", AT_REST)
    return seen


def dated(path: Path, content: bytes) -> Path:
    """Write a file with the date that archives give to all of their files."""
    path.write_bytes(content)
    os.utime(path, ns=(0, 315_532_800_000_000_000))
    return path


def test_a_file_that_stays_as_it_is_is_hashed_once(tmp_path: Path, hashed: list[Path]):
    path = dated(tmp_path / "expert", b"one")
    assert [file_hashes.remembered(path, tmp_path / "cache") for _ in range(3)] == [sum_of(b"one")] * 3
    assert hashed == [path]
    file_hashes.remembered(dated(tmp_path / "other", b"one"), tmp_path / "cache")
    assert hashed == [path, tmp_path / "other"]


@pytest.mark.parametrize("content", [b"two", b"longer"])
def test_a_file_that_takes_the_place_of_another_is_hashed(tmp_path: Path, hashed: list[Path], content: bytes):
    """Both have one date, and with "two" one size: experts are of one size, and so are the dates in some archives."""
    path, other = dated(tmp_path / "expert", b"one"), dated(tmp_path / "another", content)
    file_hashes.remembered(path, tmp_path / "cache")
    assert path.stat().st_mtime_ns == other.stat().st_mtime_ns
    other.replace(path)
    assert file_hashes.remembered(path, tmp_path / "cache") == sum_of(content)


def test_new_content_under_the_old_date_is_hashed(tmp_path: Path, hashed: list[Path]):
    path = dated(tmp_path / "expert", b"one")
    before = path.stat()
    file_hashes.remembered(path, tmp_path / "cache")
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the file system's clock may stand for some milliseconds
        dated(path, b"two")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert file_hashes.remembered(path, tmp_path / "cache") == sum_of(b"two")


def test_number_and_both_dates_are_part_of_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = dated(tmp_path / "expert", b"one")
    given = path.stat()
    states = [file_hashes.state_of(path)]
    for field in ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"):
        values = {name: getattr(given, name) for name in ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_mode")}
        other = type("Status", (), {**values, field: values[field] + 1})()
        with monkeypatch.context() as patched:
            patched.setattr(Path, "stat", lambda self, other=other: other)
            states.append(file_hashes.state_of(path))
    assert len(set(states)) == 5


def test_a_file_that_was_just_written_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Within the grain of the file system's clock it can change once more and keep its state."""
    path = dated(tmp_path / "expert", b"one")
    monkeypatch.setattr(file_hashes, "_state", lambda status: "the same")
    assert file_hashes.remembered(path, tmp_path / "cache") == sum_of(b"one")
    dated(path, b"two")
    assert file_hashes.remembered(path, tmp_path / "cache") == sum_of(b"two")
    assert not (tmp_path / "cache").exists()


def test_a_change_while_a_file_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = dated(tmp_path / "expert", b"one")

    def changed(file: Path) -> str:
        found = file_sha256(file)
        file.write_bytes(b"two")
        return found

    monkeypatch.setattr(file_hashes, "GRAIN", AT_REST)
    with monkeypatch.context() as patched:
        patched.setattr(file_hashes, "file_sha256", changed)
        file_hashes.remembered(path, tmp_path / "cache")
    assert file_hashes.remembered(path, tmp_path / "cache") == sum_of(b"two")


@pytest.mark.parametrize("note", [b"", b"\xff\xfe", b"state\n", b"short\nSTATE\n"])
def test_a_damaged_note_is_written_anew(tmp_path: Path, hashed: list[Path], note: bytes):
    path = dated(tmp_path / "expert", b"one")
    file_hashes.remembered(path, tmp_path / "cache")
    (kept,) = (file for file in (tmp_path / "cache").rglob("*") if file.is_file())
    sound = kept.read_bytes()
    kept.write_bytes(note.replace(b"STATE", file_hashes.state_of(path).encode()))
    assert file_hashes.remembered(path, tmp_path / "cache") == sum_of(b"one")
    assert kept.read_bytes() == sound
    assert len(hashed) == 2


def test_files_are_read_where_nothing_can_be_written(tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch):
    def refused(path: Path):
        raise InputError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr(file_hashes, "atomic_file", refused)
    assert file_hashes.remembered(dated(tmp_path / "own", b"content"), tmp_path) == sum_of(b"content")
