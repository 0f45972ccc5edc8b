"""The digits of EMNIST from their published archive: fetched, unpacked, read, recorded; nothing that is not as expected."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fusionbench_lite import doctor
from fusionbench_lite.data import vision
from fusionbench_lite.data.vision import decoding, tasks
from fusionbench_lite.data.vision.archive import PublishedArchive
from fusionbench_lite.data.vision.sources import find
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import clip
from fusionbench_lite.running import loading
from tests.conftest import ROOT
from tests.support import vision_archive, vision_files
from tests.support.mirror import Mirror
from tests.support.mirror import mirror as mirror
from tests.support.vision_archive import SIZES, digits, members, name, raw_files, zipped
from tests.support.vision_suite import SMALL, Suite, called, fill

SIZE = 32
PATH = "cs_links/EMNIST/gzip.zip"
IMAGES = f"gzip/{name('test', 'images')}.gz"
TRAINING = f"gzip/{name('train', 'images')}.gz"


def served(mirror: Mirror, folder: Path, content: bytes | None = None, **changes: object) -> vision.Sources:
    """Serve an archive and return sources whose table names it."""
    content = zipped(members()) if content is None else content
    file = vision_archive.table(folder / "tasks.yaml", mirror.publish(PATH, content), content, **changes)
    return vision.Sources("tall", folder / "cache", tasks_file=file)


def refused(given: vision.Sources) -> str:
    with pytest.raises(InputError) as caught:
        vision.load("emnist", given, None, SIZE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unpacked(given: vision.Sources) -> list[Path]:
    return sorted(path for path in (given.cache / "archives").rglob("EMNIST/raw/*") if path.is_file())


# ---------------------------------------------------------------- the packaged table


def test_the_table_names_the_archive_that_torchvision_reads():
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before torchvision)

    # isort: split
    from torchvision.datasets import EMNIST

    task = vision.task("emnist", "tall")
    assert task.archive is not None
    assert (task.archive.url, task.archive.md5) == (EMNIST.url, EMNIST.md5)
    for split, arguments in (("train", {"train": True}), ("test", {"train": False})):
        torchvisions = EMNIST.__new__(EMNIST)
        torchvisions.root, torchvisions.split, torchvisions.train = "", "digits", arguments["train"]
        wanted = [Path(torchvisions.images_file).name, Path(torchvisions.labels_file).name]
        assert [Path(member).name for member in getattr(task.archive, split).values()] == [f"{key}.gz" for key in wanted]
        assert list(getattr(task.archive, split)) == ["images", "labels"]
    assert [vision.task(key, variant).archive for key in vision.names() for variant in vision.VARIANTS if (key, variant) != (
        "emnist", "tall")] == [None] * 39
    assert all(vision.task(key, "tall").hub or vision.task(key, "tall").archive for key in vision.names())


def test_the_unpacked_sizes_are_those_of_the_published_files(tmp_path: Path):
    """240,000 and 40,000 images of 28 x 28 bytes behind a header of 16 bytes, labels behind one of 8."""
    place = find(vision.task("emnist", "tall"), vision.Sources("tall", tmp_path), "test")
    assert [member.size for member in place.members["train"]] == [188_160_016, 240_008]
    assert [member.size for member in place.members["test"]] == [31_360_016, 40_008]
    assert not list(tmp_path.iterdir())


WRONG = {
    "address": ({"url": "ftp://host/gzip.zip"}, "no address of a file"),
    "checksum": ({"md5": "58c8"}, "is no MD5"),
    "size": ({"about": "large"}, "about of an archive takes 1 whole number of at least 1"),
    "shape": ({"image": [28]}, "image of an archive takes 2 whole numbers"),
    "no shape": ({"image": 28}, "image of an archive takes 2 whole numbers"),
    "members": ({"test": {"images": "a.gz"}}, "test of an archive takes the names of two members, images and labels"),
    "absolute": ({"test": {"images": "/etc/images.gz", "labels": "b.gz"}}, "'/etc/images.gz' is no member of an archive"),
    "above": ({"test": {"images": "../images.gz", "labels": "b.gz"}}, "'../images.gz' is no member of an archive"),
    "inside": ({"test": {"images": "a/../../b.gz", "labels": "b.gz"}}, "is no member of an archive"),
    "windows": ({"test": {"images": "..\\images.gz", "labels": "b.gz"}}, "is no member of an archive"),
    "no name": ({"test": {"images": ".gz", "labels": "b.gz"}}, "is no member of an archive"),
    "plain": ({"test": {"images": "gzip/images", "labels": "b.gz"}}, "ending in .gz"),
    "number": ({"test": {"images": 3, "labels": "b.gz"}}, "3 is no member of an archive"),
    "twice": ({"test": {"images": "x/a.gz", "labels": "y/a.gz"}}, "members of an archive have the same name"),
    "key": ({"sha256": "0" * 64}, "has a key too many"),
}


@pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG)
def test_entries_that_cannot_be_are_refused(changes: dict[str, object], words: str, tmp_path: Path):
    file = vision_archive.table(tmp_path / "tasks.yaml", "https://host/gzip.zip", b"", about=7)
    entries = yaml.safe_load(file.read_text())
    entries["emnist"]["tall"]["archive"] |= changes
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(entries))
    with pytest.raises(InputError) as caught:
        tasks.task("emnist", "tall", file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "'emnist'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"hub": {"repo": "a/b"}}, "both hub and archive"), ({"local": None}, "class of torchvision"),
     ({"local": {"reader": "eurosat", "at": "x"}}, "class of torchvision")],
)  # fmt: skip
def test_an_archive_beside_what_it_cannot_be_with_is_refused(changes: dict[str, object], words: str, tmp_path: Path):
    file = vision_archive.table(tmp_path / "tasks.yaml", "https://host/gzip.zip", b"", about=7)
    entries = yaml.safe_load(file.read_text())
    entries["emnist"]["tall"] |= changes
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(entries))
    with pytest.raises(InputError, match=words):
        tasks.task("emnist", "tall", file)


def test_a_table_without_an_archive_says_where_to_put_the_files(tmp_path: Path, mirror: Mirror):
    given = served(mirror, tmp_path)
    entries = yaml.safe_load(given.tasks_file.read_text())
    del entries["emnist"]["tall"]["archive"]
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump(entries))
    line = refused(dataclasses.replace(given, tasks_file=file))
    assert "no repository of the hub holds the images of task 'emnist'" in line
    assert "datasets.EMNIST" in line
    assert "split='digits'" in line
    assert mirror.asked() == []


# ---------------------------------------------------------------- reading


def test_the_archive_is_fetched_once_and_its_four_files_are_kept(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = served(mirror, tmp_path)
    data = vision.load("emnist", given, None, SIZE)
    assert [one.method for one in mirror.asked()] == ["HEAD", "GET"]
    assert {path.name: path.read_bytes() for path in unpacked(given)} == raw_files()
    for split in SIZES:
        images, labels = digits(split)
        assert np.asarray(getattr(data, f"{split}_labels")).tolist() == labels.tolist()
        wanted = np.stack([decoding.square(Image.fromarray(image), SIZE) for image in images])
        np.testing.assert_array_equal(np.asarray(getattr(data, f"{split}_images")[:]), wanted)
    assert len(mirror.asked()) == 2
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    next((given.cache / "archives").glob("*/gzip.zip")).unlink()
    again = vision.load("emnist", given, None, SIZE)
    assert again.sha256 == data.sha256
    assert len(again.train_images[:3]) == 3
    assert len(mirror.asked()) == 2


def test_images_are_fed_as_they_are_stored(mirror: Mirror, tmp_path: Path):
    """NIST stores EMNIST's images transposed; torchvision leaves them so, and so did the authors of the checkpoints."""
    data = vision.load("emnist", served(mirror, tmp_path), None, SIZE)
    first = digits("test")[0][0]
    stored, upright = (decoding.square(Image.fromarray(np.ascontiguousarray(image)), SIZE) for image in (first, first.T))
    assert not np.array_equal(stored, upright)
    np.testing.assert_array_equal(data.test_images[0], stored)
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before torchvision)

    # isort: split
    from torchvision.datasets import EMNIST

    image, label = EMNIST(str(vision_archive.write_data_dir(tmp_path / "data")), split="digits", train=False)[0]
    np.testing.assert_array_equal(np.asarray(image), first)
    assert label == digits("test")[1][0] == data.test_labels[0]


@pytest.mark.parametrize("others", [False, True])
def test_the_same_files_below_data_dir_have_the_same_hashes(others: bool, mirror: Mirror, tmp_path: Path):
    """Also where torchvision has unpacked all splits there, for images of both splits: a record is found by them."""
    given = served(mirror, tmp_path)
    theirs = vision_archive.write_data_dir(tmp_path / "data", others)
    local = vision.load("emnist", dataclasses.replace(given, data_dir=theirs, cache=tmp_path / "other"), None, SIZE)
    assert mirror.asked() == []
    assert local.source == f"{theirs / 'EMNIST/raw'}, test"
    data = vision.load("emnist", given, None, SIZE)
    assert data.sha256 == local.sha256
    assert data.test_images.fingerprint == local.test_images.fingerprint
    assert data.train_images.fingerprint == local.train_images.fingerprint
    assert "no training images" not in data.train_images.fingerprint


def test_a_task_without_an_archive_keeps_the_fingerprint_of_its_whole_folder(tmp_path: Path, mirror: Mirror):
    """The letters, whose records were made before: another file in the folder is another hash."""
    given = served(mirror, tmp_path)
    raw = vision_archive.write_data_dir(tmp_path / "data") / "EMNIST/raw"
    for split in SIZES:
        images = digits(split, 52)[0]
        labels = np.arange(52, dtype=np.uint8) % 26 + 1
        for kind, content in (("images", images), ("labels", labels)):
            (raw / name(split, kind, "letters")).write_bytes(vision_archive.idx(content))
    task = tasks.task("emnist", "fusionbench", given.tasks_file)
    letters = dataclasses.replace(given, variant="fusionbench", data_dir=tmp_path / "data", source="folder")
    before = find(task, letters, "train").fingerprint("train")
    (raw / "gzip.zip").unlink()
    assert find(task, letters, "train").fingerprint("train") != before


def test_data_dir_comes_first_and_folder_alone_downloads_nothing(mirror: Mirror, tmp_path: Path):
    given = served(mirror, tmp_path)
    (tmp_path / "data").mkdir()
    only = dataclasses.replace(given, data_dir=tmp_path / "data", source="folder")
    line = refused(only)
    assert "has no test images below" in line
    assert "torchvision's EMNIST/raw" in line
    assert mirror.asked() == []
    vision_archive.write_data_dir(tmp_path / "data")
    assert len(vision.load("emnist", dataclasses.replace(only, source="auto"), None, SIZE).test_labels) == 20
    assert mirror.asked() == []
    hub = vision.load("emnist", dataclasses.replace(only, source="hub"), None, SIZE)
    assert hub.source.startswith(f"archive {mirror.storage_url}/web/{PATH} (MD5 ")
    assert len(mirror.asked()) == 2


def test_an_unpacked_file_that_was_changed_is_unpacked_again(mirror: Mirror, tmp_path: Path):
    given = served(mirror, tmp_path)
    data = vision.load("emnist", given, None, SIZE)
    damaged = next(path for path in unpacked(given) if "test-images" in path.name)
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert vision.load("emnist", given, None, SIZE).sha256 == data.sha256
    assert damaged.read_bytes() == content
    damaged.unlink()
    assert vision.load("emnist", given, None, SIZE).sha256 == data.sha256
    assert len(mirror.asked()) == 2


def test_offline_the_place_of_the_archive_is_named_and_then_used(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = served(mirror, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    content = zipped(members())
    place = given.cache / "archives" / hashlib.md5(content).hexdigest() / "gzip.zip"
    line = refused(given)
    assert f"put the file there by hand: {place}" in line
    assert f"{mirror.storage_url}/web/{PATH}" in line
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    assert len(vision.load("emnist", given, None, SIZE).test_labels) == 20
    assert mirror.asked() == []


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
