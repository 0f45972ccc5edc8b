"""What lies in a cache, what goes and what stays, and what is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fusionbench_lite import cache as cli
from fusionbench_lite import paths
from fusionbench_lite.base import at_work
from fusionbench_lite.housekeeping import entries, pruning
from fusionbench_lite.paths import file_sha256
from tests.running.test_run import SMALL
from tests.support.commands import ROOT

DAY = 86400
HOLD = """
import sys, time, pathlib
from fusionbench_lite.base import at_work
from fusionbench_lite.paths import locked
cache = pathlib.Path(sys.argv[1])
if sys.argv[2] == "at_work":
    at_work.register(cache)
    print("held", flush=True)
    time.sleep(600)
with locked(cache / sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two trained folders, a download, a statistic, a drawn task, a leftover, something of somebody else; all a month old."""
    root = tmp_path / "a cache [1]"
    for name in ("one", "two"):
        folder = root / "zoo" / f"vit_mini-{name}"
        folder.mkdir(parents=True)
        save_file({"w": torch.arange(300.0)}, folder / "pretrained.safetensors")
        manifest = {"files": {"pretrained.safetensors": {"sha256": file_sha256(folder / "pretrained.safetensors")}}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (root / "zoo" / f"vit_mini-{name}.lock").touch()
    blobs = root / "hub" / "models--a--b" / "blobs"
    snapshot = root / "hub" / "models--a--b" / "snapshots" / "c0"
    for folder in (blobs, snapshot, root / "hub" / ".locks", root / "statistics", root / "data", root / "mine"):
        folder.mkdir(parents=True)
    for content, name in ((b"weights", None), (b"{}", hashlib.sha1(b"blob 2\0{}").hexdigest())):
        (blobs / (name or hashlib.sha256(content).hexdigest())).write_bytes(content)
    (snapshot / "model.bin").symlink_to(blobs / hashlib.sha256(b"weights").hexdigest())
    save_file({"w": torch.zeros(4)}, root / "statistics" / "ab.safetensors")
    np.savez(root / "data" / "digits.npz", images=np.zeros((3, 32, 32, 3), np.uint8))
    (root / "data" / ".digits.npz.x.tmp").write_bytes(b"half")
    (root / "mine" / "thesis.pdf").write_bytes(b"dear")
    age(root, 30 * DAY)
    return root


def age(root: Path, seconds: float) -> None:
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            os.utime(path, (time.time() - seconds,) * 2)


def call(capsys, *line: str) -> tuple[int, str]:
    status = cli.main(list(line))
    said = capsys.readouterr()
    return status, said.out + said.err


@pytest.fixture
def holder(cache):
    """Starts a process that holds a lock of the cache, or says that it is at work."""
    started = []

    def hold(what: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(cache), what], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_what_is_there_by_kind(cache, capsys):
    status, said = call(capsys, f"cache_dir={cache}")
    assert status == 0
    lines = {line.split()[0]: line for line in said.splitlines()[1:]}
    assert said.splitlines()[0].startswith(f"{cache}: 6 entries, ")
    for kind, number in (("experts", "2"), ("downloads", "1"), ("statistics", "1"), ("data", "1"), ("leftovers", "1")):
        assert lines[kind].split()[1] == number
    assert "30 days ago" in lines["experts"]
    assert "not of this package, never removed: mine" in said
    sizes = sum(entry.nbytes for entry in entries.entries(cache) if entry.kind == "experts")
    assert sizes == sum(path.stat().st_size for path in cache.glob("zoo/*/*"))


def test_every_entry_on_a_line_of_its_own(cache, capsys):
    _, said = call(capsys, "list", f"cache_dir={cache}", "kind=experts,leftovers", "--verbose")
    assert "zoo/vit_mini-one" in said
    assert "data/.digits.npz.x.tmp" in said
    assert "statistics" not in said


def test_nothing_goes_without_yes(cache, capsys):
    before = sorted(cache.rglob("*"))
    status, said = call(capsys, "prune", f"cache_dir={cache}")
    assert status == 0
    assert "6 of 6 entries would go" in said
    assert "add yes=true" in said
    assert sorted(cache.rglob("*")) == before


def test_what_is_old_goes_and_what_is_not_ours_stays(cache, capsys, tmp_path):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"kept")
    (cache / "statistics" / "link.safetensors").symlink_to(outside)
    (cache / "zoo" / "elsewhere").symlink_to(tmp_path)
    age(cache / "zoo" / "vit_mini-two", DAY)
    status, said = call(capsys, "prune", f"cache_dir={cache}", "older=2d", "yes=true")
    assert status == 0
    assert "removed: experts" in said
    assert not (cache / "zoo" / "vit_mini-one").exists()
    assert (cache / "zoo" / "vit_mini-two" / "manifest.json").exists()
    assert (cache / "zoo" / "vit_mini-one.lock").exists(), "another process may wait for it"
    assert (cache / "mine" / "thesis.pdf").exists()
    assert outside.exists()
    assert (cache / "zoo" / "elsewhere").is_symlink()
    assert not list(cache.rglob("*.tmp"))


def test_larger_and_keep(cache, capsys):
    _, said = call(capsys, "prune", f"cache_dir={cache}", "larger=5KB")
    assert "1 of 1 entries would go" in said
    assert "data/digits.npz" in said
    age(cache / "zoo" / "vit_mini-one", 40 * DAY)
    one = sum(path.stat().st_size for path in (cache / "zoo" / "vit_mini-one").iterdir())
    _, said = call(capsys, "prune", f"cache_dir={cache}", "kind=experts", f"keep={one}B", "yes=true")
    assert "1 of 1 entries removed" in said
    assert [path.name for path in cache.glob("zoo/*") if path.is_dir()] == ["vit_mini-two"]


def test_what_was_just_used_stays(cache, capsys):
    (cache / "zoo" / "vit_mini-one" / "pretrained.safetensors").touch()
    _, said = call(capsys, "prune", f"cache_dir={cache}", "kind=experts", "yes=true")
    assert "kept: used just now: experts" in said
    assert (cache / "zoo" / "vit_mini-one").exists()
    assert not (cache / "zoo" / "vit_mini-two").exists()


def test_what_another_process_makes_stays(cache, capsys, holder):
    holder("zoo/vit_mini-one.lock")
    status, said = call(capsys, "prune", f"cache_dir={cache}", "kind=experts", "yes=true")
    assert status == 1
    assert "kept: another process makes it" in said
    assert (cache / "zoo" / "vit_mini-one").exists()


@pytest.mark.parametrize("noted", [True, False])
def test_what_a_process_at_work_may_open_stays(cache, capsys, holder, monkeypatch, noted):
    """Reading is noted once a day: what was last read half a day before the process began may be in its hands. Where reading is
    not noted, everything may."""
    process = holder("at_work")
    monkeypatch.setattr(pruning, "notes_reading", lambda folder: noted)
    age(cache / "zoo" / "vit_mini-two", DAY / 2)
    _, said = call(capsys, "prune", f"cache_dir={cache}", "yes=true")
    assert "a process at work may use it" in said
    assert (cache / "zoo" / "vit_mini-two").exists()
    assert (cache / "zoo" / "vit_mini-one").exists() is not noted
    assert not (cache / "statistics" / "ab.safetensors").exists(), "read whole, and made again where it is missing"
    process.kill()
    process.wait()
    assert at_work.since(cache) is None
    assert not list((cache / at_work.FOLDER).glob("*")), "what an ended process left is taken away"
    call(capsys, "prune", f"cache_dir={cache}", "yes=true")
    assert not list(cache.glob("zoo/*/*"))


def test_sound_entries(cache, capsys):
    status, said = call(capsys, "verify", f"cache_dir={cache}")
    assert (status, said) == (0, "6 entries, 3 of them compared with hashes: 0 damaged\n")


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("zoo/vit_mini-one/pretrained.safetensors", "its SHA-256 is "),
        (f"hub/models--a--b/blobs/{hashlib.sha256(b'weights').hexdigest()}", "its content is not that of its name"),
        ("statistics/ab.safetensors", "it is no whole safetensors file"),
        ("data/digits.npz", "no whole npz file"),
        ("zoo/vit_mini-one/manifest.json", "it is no manifest"),
    ],
)
def test_damage_is_named_and_repaired(cache, capsys, place, what):
    path = cache / place
    content = path.read_bytes()
    path.write_bytes(content[:-5] if "zoo" not in place or place.endswith("json") else content[:-4] + b"\0\0\0\1")
    age(cache, 30 * DAY)
    status, said = call(capsys, "verify", f"cache_dir={cache}")
    assert status == 1
    assert str(path) in said
    assert what in said
    assert "1 damaged" in said
    status, said = call(capsys, "verify", f"cache_dir={cache}", "repair=true")
    assert status == 0
    assert not path.exists()
    assert call(capsys, "verify", f"cache_dir={cache}")[0] == 0


def test_a_link_that_leads_nowhere_and_a_file_that_is_missing(cache, capsys):
    (cache / "hub" / "models--a--b" / "blobs" / hashlib.sha256(b"weights").hexdigest()).unlink()
    (cache / "zoo" / "vit_mini-one" / "pretrained.safetensors").unlink()
    _, said = call(capsys, "verify", f"cache_dir={cache}")
    assert "what it links to is missing" in said
    assert "pretrained.safetensors: it is missing" in said


def test_a_folder_that_is_just_made_is_no_old_one(cache, capsys):
    """The folder in which a run is about to write experts is empty at first."""
    with paths.atomic_directory(cache / "zoo" / "vit_mini-new") as folder:
        call(capsys, "prune", f"cache_dir={cache}", "yes=true")
        (folder / "weights").write_bytes(b"w")
    assert (cache / "zoo" / "vit_mini-new" / "weights").is_file()


def test_what_safetensors_is_writing_is_a_leftover(cache):
    (cache / "statistics" / ".tmpHy5tOR").write_bytes(b"half")
    assert {one.kind for one in entries.entries(cache) if one.path.name == ".tmpHy5tOR"} == {entries.LEFT}


def test_what_was_used_after_it_was_listed_stays(cache):
    (entry,) = (one for one in entries.entries(cache) if one.path.name == "vit_mini-one")
    os.utime(entry.path / "pretrained.safetensors")
    ((_, reason),) = pruning.remove([entry], pruning.guard(cache))
    assert reason == "used just now"
    assert entry.path.is_dir()


def test_a_lock_that_another_process_removes_at_once_is_taken_again(tmp_path, monkeypatch):
    taken = filelock.FileLock.acquire
    lost = []

    def acquire(self, **given):
        got = taken(self, **given)
        if not lost:
            lost.append(self.lock_file)
            Path(self.lock_file).unlink()
        return got

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    at_work.register(tmp_path)
    assert lost
    (lock,) = (tmp_path / at_work.FOLDER).iterdir()
    assert str(lock) != lost[0]


@pytest.mark.slow
def test_runs_end_well_while_the_cache_is_cleared(cache, capsys, tmp_path, monkeypatch):
    """Everything that may go goes, again and again, while experts are trained, read and merged."""
    monkeypatch.setattr(pruning, "RECENT", 0.0)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FUSIONBENCH_LITE_CACHE": str(cache)}
    line = ["-m", "method=task_arithmetic,fisher_merging,tsv_m", "seed=0,1", *SMALL]
    with subprocess.Popen(
        [sys.executable, "-m", "fusionbench_lite", *line], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as process:
        times = 0
        while process.poll() is None:
            call(capsys, "prune", f"cache_dir={cache}", "yes=true")
            times += 1
            time.sleep(0.05)
        assert process.returncode == 0, process.stdout.read()
    assert times > 20
    assert len(list((tmp_path / "results" / "records").iterdir())) == 6
