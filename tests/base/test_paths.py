"""Files and directories appear whole or not at all."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time

import pytest

from fusionbench_lite import paths
from fusionbench_lite.errors import InputError, WriteError


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_directory_appears_whole_and_replaces(tmp_path):
    final = tmp_path / "record"
    for content in ("one", "two"):
        with paths.atomic_directory(final) as temporary:
            (temporary / "file").write_text(content)
            assert not final.exists() or (final / "file").read_text() == "one"
        assert (final / "file").read_text() == content
    assert _names(tmp_path) == ["record"]


@pytest.mark.parametrize("failure", [RuntimeError("interrupted"), OSError(errno.ENOSPC, "No space left on device")])
def test_nothing_is_left_after_a_failure(tmp_path, failure):
    expected = InputError if isinstance(failure, OSError) else RuntimeError
    with pytest.raises(expected) as caught, paths.atomic_directory(tmp_path / "record") as temporary:
        (temporary / "file").write_text("half")
        raise failure
    if expected is InputError:
        assert "record: No space left on device" in str(caught.value)
    with pytest.raises(expected), paths.atomic_file(tmp_path / "file"):
        raise failure
    assert _names(tmp_path) == []


def test_a_failed_replacement_keeps_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), paths.atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old"


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot write .*record: No space left on device"):
        with paths.atomic_directory(tmp_path / "record") as temporary:
            (temporary / "file").write_text("x")
    assert _names(tmp_path) == []


@pytest.mark.parametrize(("number", "fix"), [
    (errno.ENOSPC, "free some space or choose another directory"), (errno.EDQUOT, "free some space or choose another directory"),
    (errno.EROFS, "choose a directory that can be written"), (errno.EACCES, "permit writing there or choose another directory"),
    (errno.ENOTDIR, "choose a directory that can be written"),
])
def test_what_is_said_to_help_helps(tmp_path, monkeypatch, number, fix):
    def refusing(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(paths.tempfile, "mkstemp", refusing)
    with pytest.raises(WriteError, match=f"cannot write .*file: {os.strerror(number)}; nothing was left there, {fix}$"):
        with paths.atomic_file(tmp_path / "file"):
            pass


def _hold(path, events):
    with paths.locked(path):
        events.put(("in", os.getpid(), time.monotonic()))
        time.sleep(0.3)
        events.put(("out", os.getpid(), time.monotonic()))


def test_a_lock_keeps_processes_apart(tmp_path):
    events = multiprocessing.Queue()
    workers = [multiprocessing.Process(target=_hold, args=(tmp_path / "zoo.lock", events)) for _ in range(2)]
    for worker in workers:
        worker.start()
    order = sorted((events.get(timeout=20) for _ in range(4)), key=lambda event: event[2])
    for worker in workers:
        worker.join()
    assert [event[0] for event in order] == ["in", "out", "in", "out"]
    assert order[0][1] == order[1][1]


def test_cache_dir_prefers_configuration_then_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(paths.CACHE_VARIABLE, str(tmp_path / "environment"))
    assert paths.cache_dir(str(tmp_path / "given")) == tmp_path / "given"
    assert paths.cache_dir(None) == tmp_path / "environment"
    monkeypatch.delenv(paths.CACHE_VARIABLE)
    assert paths.cache_dir(None).name == "fusionbench_lite"


@pytest.mark.parametrize(("moment", "lines"), [(60.0, 0), (0.0, 1)])
def test_a_short_wait_for_another_process_is_not_worth_a_line(tmp_path, monkeypatch, caplog, moment, lines):
    monkeypatch.setattr(paths, "MOMENT", moment)
    caplog.set_level("INFO")
    entered = threading.Event()

    def said():
        return [record for record in caplog.records if "waiting for it" in record.message]

    def hold():
        with paths.locked(tmp_path / "lock"):
            entered.set()
            time.sleep(0.1)
            while len(said()) < lines:
                time.sleep(0.01)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    with paths.locked(tmp_path / "lock"):
        thread.join()
    assert len(said()) == lines
