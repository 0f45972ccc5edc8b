"""The cache of decoded images among processes that are killed, and on disks that are full or read-only."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from fusionbench_lite.data.vision import decoding
from fusionbench_lite.data.vision.cache import Decoded
from fusionbench_lite.data.vision.encoded import Arrays, Files
from fusionbench_lite.data.vision.index import DECODED
from fusionbench_lite.errors import InputError
from tests.conftest import ROOT
from tests.data.test_image_cache import SIZE, cache, every, paths, rows, write_images  # noqa: F401
from tests.support.vision_data import picture

# ---------------------------------------------------------------- several processes, killed processes, full disks

FILL = """
import sys, time
import numpy as np
from pathlib import Path
from fusionbench_lite.data.vision import decoding
from fusionbench_lite.data.vision.cache import Decoded
from fusionbench_lite.data.vision.encoded import Files

folder, images, wait = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
plain = decoding.opened
decoding.opened = lambda content: (time.sleep(wait), plain(content))[1]
found = Decoded(folder, Files(sorted(images.iterdir())), {}, 32)
print("ready", flush=True)
sys.stdin.readline()
print(np.asarray(found.read(np.arange(len(found)))).sum(), flush=True)
"""


def process(folder: Path, images: Path, wait: float) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FILL), str(folder), str(images), str(wait)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=environment,
    )
    assert running.stdout.readline() == "ready\n"
    return running


def start(running: subprocess.Popen) -> None:
    running.stdin.write("\n")
    running.stdin.flush()


def test_two_processes_fill_the_same_files(tmp_path):
    paths = write_images(tmp_path / "images", 600)  # noqa: F811
    alone = cache(tmp_path, paths, "alone")
    expected = alone.read(every(alone))
    folder = tmp_path / "shared" / "task-test"
    both = [process(folder, tmp_path / "images", 0.001) for _ in range(2)]
    for running in both:
        start(running)
    sums = [int(running.communicate(timeout=60)[0]) for running in both]
    assert sums == [int(expected.sum())] * 2
    for name in ("pixels", "index"):
        assert (folder / name).read_bytes() == (alone.folder / name).read_bytes()


def test_a_killed_process_loses_only_what_it_had_not_finished(tmp_path, monkeypatch):
    paths = write_images(tmp_path / "images", 200)  # noqa: F811
    alone = cache(tmp_path, paths, "alone")
    expected = alone.read(every(alone))
    folder = tmp_path / "killed" / "task-test"
    running = process(folder, tmp_path / "images", 0.02)
    start(running)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "index").exists() and sum(map(bool, (folder / "index").read_bytes())) > 150:
            break
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    found = Decoded(folder, Files(paths), {}, SIZE)
    done = int((found.index.states(every(found)) == DECODED).sum())
    assert 0 < done < 200
    opened, count = decoding.opened, []
    monkeypatch.setattr(decoding, "opened", lambda content: count.append(1) or opened(content))
    assert np.array_equal(found.read(every(found)), expected)
    assert len(count) == 200 - done


def test_a_full_disk_is_one_line_and_keeps_what_is_there(tmp_path, paths):  # noqa: F811
    found = cache(tmp_path, paths)
    found.read(rows(0, 1, 2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * found.row_bytes + 50, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*task-test: .*free some space, or set cache_dir") as caught:
            found.read(every(found))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    done = cache(tmp_path, paths).index.states(every(found)) == DECODED
    assert done[:3].all()
    assert not done[10:].any()
    assert len(cache(tmp_path, paths).read(every(found))) == 30


def test_a_cache_folder_that_cannot_be_made(tmp_path, paths):  # noqa: F811
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cannot (write|read)") as caught:
        cache(tmp_path, paths).read(rows(0))
    assert "\n" not in str(caught.value)


def test_a_read_only_cache_serves_what_it_holds(tmp_path, paths, monkeypatch):  # noqa: F811
    found = cache(tmp_path, paths)
    good = found.read(np.arange(10))
    plain = Path.open

    def read_only(path, mode="r", *arguments, **others):
        if path.parent == found.folder and set(mode) & set("wa+x"):
            raise OSError(30, "Read-only file system")
        return plain(path, mode, *arguments, **others)

    monkeypatch.setattr(Path, "open", read_only)
    again = cache(tmp_path, paths)
    assert np.array_equal(again.read(np.arange(10)), good)
    with pytest.raises(InputError, match="Read-only file system"):
        again.read(rows(20))


def test_an_error_in_the_middle_leaves_no_thread_writing(tmp_path, paths):  # noqa: F811
    """A row that fails ends the pass; files are closed only when all threads are done with them."""

    def image(row: int):
        time.sleep(0.005 * (row > 5))
        if row == 5:
            raise InputError("row 5 is not there")
        return picture(row, 0)

    found = Decoded(tmp_path / "x", Arrays(30, image, "rows"), {}, SIZE)
    with pytest.raises(InputError, match="row 5 is not there"):
        found.ensure(every(found))
    after = (tmp_path / "x" / "pixels").read_bytes()
    time.sleep(0.1)
    assert (tmp_path / "x" / "pixels").read_bytes() == after
