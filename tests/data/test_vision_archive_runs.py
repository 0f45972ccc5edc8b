"""Whole runs and the doctor on a task whose images come in an archive."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from fusionbench_lite import doctor
from fusionbench_lite.data.vision import tasks
from fusionbench_lite.models import clip
from fusionbench_lite.running import loading
from tests.data.test_vision_archive import PATH
from tests.support import vision_archive, vision_files
from tests.support.lines import called
from tests.support.mirror import Mirror
from tests.support.mirror import mirror as mirror
from tests.support.vision_archive import SIZES, members, raw_files, zipped
from tests.support.vision_suite import SMALL, Suite, fill

# ---------------------------------------------------------------- the whole line, and what the doctor says


@pytest.fixture
def suite(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hub with two experts of TALL-masks and the images of one; those of the other come from the archive."""
    monkeypatch.setitem(clip.SIZES, "vit_b32", SMALL)
    sizes = {"mnist": (40, 30)}
    fill(mirror, SMALL, sizes=sizes)
    vision_files.write_tall(mirror.root / "models/nik-dim/tall_masks", "vit_b32", ("mnist", "emnist"), SMALL)
    found = Suite(mirror, tmp_path, sizes)
    content = zipped(members())
    both = {**sizes, "emnist": (SIZES["train"], SIZES["test"])}
    vision_archive.table(found.tasks_file, mirror.publish(PATH, content), content, both)
    yield found
    loading._latest.clear()


LINE = "checkpoints=tall tasks=[mnist,emnist]"


def needed(suite: Suite, line: str = "") -> tuple[int, dict[str, dict], dict]:
    status, said = called(doctor.main, suite.line(f"{LINE} method=regmean doctor.format=json {line}"))
    told = json.loads(said[said.index("{"):])
    return status, {item["what"]: item for item in told["items"] if item["task"] == "emnist"}, told


def test_a_run_fetches_the_archive_records_it_and_needs_no_network_after(suite: Suite, monkeypatch: pytest.MonkeyPatch):
    mirror = suite.mirror
    statistics = "method=regmean method.statistics.examples=8"
    record, trained = suite.run(f"{LINE} method=task_arithmetic"), suite.run(f"{LINE} {statistics}")
    assert [one.method for one in mirror.asked("*gzip.zip")] == ["HEAD", "GET"]
    archive = tasks.task("emnist", "tall", suite.tasks_file).archive
    assert archive is not None
    told = record.data["images"]["emnist"]
    assert told["source"] == f"archive {archive.url} (MD5 {archive.md5}), test"
    files = {f"gzip/{key}.gz": hashlib.sha256(content).hexdigest() for key, content in raw_files().items()}
    assert told["files"] == {f"{archive.url}:{member}": sha256 for member, sha256 in files.items() if "-test-" in member}
    assert record.data["selections"]["last"]["per_task"]["emnist"]["examples"] == 20
    assert any("NIST's archive" in caveat for caveat in record.data["caveats"])
    mirror.log.clear()
    mirror.close()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loading._latest.clear()
    assert suite.again(f"{LINE} method=task_arithmetic").key == record.key
    suite.run(f"{LINE} method=weight_averaging")
    loading._latest.clear()
    theirs = vision_archive.write_data_dir(suite.folder / "data")
    for line, key in (("method=task_arithmetic", record.key), (statistics, trained.key)):
        assert suite.again(f"{LINE} {line} data_dir={theirs}").key == key
        loading._latest.clear()
    assert mirror.log == []


def test_a_run_that_cannot_have_the_archive_ends_in_one_line(suite: Suite):
    suite.mirror.inject("missing", "*gzip.zip", times=1000)
    line = suite.refused(f"{LINE} method=task_arithmetic")
    assert f"cannot download {suite.mirror.storage_url}/web/{PATH}: {suite.mirror.storage_url} has no such file" in line
    assert "put the file there by hand" in line


def test_the_doctor_follows_the_archive(suite: Suite):
    mirror = suite.mirror
    archive = tasks.task("emnist", "tall", suite.tasks_file).archive
    assert archive is not None
    status, items, before = needed(suite)
    assert status == 0
    test, train = items["test images"], items["training images"]
    assert (test["where"], test["nbytes"], test["present"], test["arrived"]) == (archive.url, archive.about, False, 0)
    assert test["path"] == str(suite.cache / "archives" / archive.md5 / "gzip.zip")
    assert (train["nbytes"], train["present"]) == (0, False)
    assert "in the archive of the test images" in train["note"]
    assert mirror.asked("*gzip.zip") == []
    mirror.inject("truncated", "*gzip.zip", at=3000)
    mirror.inject("forbidden", "*gzip.zip", method="GET")
    suite.refused(f"{LINE} method=task_arithmetic")
    status, items, part = needed(suite)
    assert status == 0
    assert (items["test images"]["present"], items["test images"]["arrived"]) == (False, 3000)
    assert part["missing_bytes"] == sum(item["nbytes"] or 0 for item in part["items"] if not item["present"]) - 3000
    status, said = called(doctor.main, suite.line(f"{LINE} method=task_arithmetic"))
    assert "3 kB of it" in said
    suite.run(f"{LINE} method=task_arithmetic")
    status, items, after = needed(suite)
    assert [what for what, item in items.items() if not item["present"]] == ["decoded training images"]  # nothing has read them
    assert items["test images"]["nbytes"] == sum(len(content) for key, content in raw_files().items() if "-test-" in key)
    assert before["missing_bytes"] > part["missing_bytes"] > after["missing_bytes"]


def test_the_doctor_finds_an_archive_that_was_put_there_by_hand(suite: Suite):
    archive = tasks.task("emnist", "tall", suite.tasks_file).archive
    assert archive is not None
    place = suite.cache / "archives" / archive.md5 / "gzip.zip"
    place.parent.mkdir(parents=True)
    place.write_bytes(zipped(members()))
    status, items, _ = needed(suite)
    assert status == 0
    assert items["test images"]["present"]
    assert items["test images"]["note"] == "to be unpacked"
    assert items["training images"]["present"]
    place.write_bytes(b"damaged")
    assert not needed(suite)[1]["test images"]["present"]


def test_the_doctor_of_a_folder_alone_asks_for_torchvisions_files(suite: Suite):
    (suite.folder / "data").mkdir()
    status, items, _ = needed(suite, f"data.source=folder data_dir={suite.folder / 'data'}")
    assert status == 1
    assert not items["test images"]["downloadable"]
    assert "torchvision's EMNIST/raw" in items["test images"]["where"]
