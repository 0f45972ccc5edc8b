"""The digits of EMNIST from their published archive: fetched, unpacked, read, recorded; nothing that is not as expected."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fusionbench_lite.data import vision
from fusionbench_lite.data.vision import decoding, tasks
from fusionbench_lite.data.vision.sources import find
from fusionbench_lite.errors import InputError
from tests.support import vision_archive
from tests.support.mirror import Mirror
from tests.support.mirror import mirror as mirror
from tests.support.vision_archive import SIZES, digits, members, name, raw_files, zipped

SIZE = 32
PATH = "cs_links/EMNIST/gzip.zip"


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
