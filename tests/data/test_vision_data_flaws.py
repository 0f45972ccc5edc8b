"""Images and files of the hub that are not as they should be, and what is needed before a run."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from fusionbench_lite.data import vision
from fusionbench_lite.errors import InputError
from tests.data.test_vision_data import DTD, SIZE, SMALL, load, local_hub, order, refused, small  # noqa: F401
from tests.support.mirror import mirror as mirror
from tests.support.vision_data import (
    encoded,
    labels_of,
    picture,
    small_tasks,
    write_folder,
    write_hub_dataset,
    write_hub_task,
    write_parquet,
    write_tar,
)


def test_corrupt_images_are_counted_named_and_left_out(tmp_path, local_hub, small):  # noqa: F811
    labels = labels_of(30, 10)
    images = [encoded(picture(c, 0), "JPEG") for c in labels]
    images[4], images[20] = images[4][:200], None
    place = tmp_path / "hub/tanganke/eurosat/data"
    write_parquet(place / "test-00000-of-00001.parquet", images, labels, None, row_group=7)
    write_parquet(place / "train-00000-of-00001.parquet", images + images[5:15], labels + labels[5:15], None)
    refused("eurosat", small, "2 of 30 images", "test-00000-of-00001.parquet row 4, test", "row 20", "data.skip_corrupt=2")
    refused("eurosat", dataclasses.replace(small, skip_corrupt=1), "2 of 30")
    given = dataclasses.replace(small, skip_corrupt=2)
    data = load("eurosat", given)
    assert data.test_images.shape[0] == len(data.test_labels) == 28
    assert data.test_labels.tolist() == [label for row, label in enumerate(labels) if row not in (4, 20)]
    assert any("2 test images could not be decoded" in caveat and "row 20" in caveat for caveat in data.caveats)
    assert len(data.train_images) == len(data.train_labels) == 38
    # A limit that does not touch them needs no leave.
    assert load("eurosat", dataclasses.replace(small, limit=10)).test_images.shape[0] == 10


HUB_FLAWS = {
    "size": ({"count": 29}, "has 29 images, but 30 are expected"),
    "label above": ({"last": 10}, "labels run from 0 to 10, but 10 classes"),
    "label below": ({"last": -1}, "labels run from -1 to 9"),
    "class without image": ({"only": 9}, "no image of class 9"),
    "label column": ({"label": "fine"}, "has no column 'label' (it has image, fine)"),
    "image column": ({"image": "img"}, "has no column 'image'"),
    "null label": ({"last": None}, "1 of 30 rows have no label"),
    "boolean": ({"boolean": True}, "label is bool, not an integer type"),
    "class names": ({"names": ["a", "b", "c"]}, "names 3 classes, but the task has 10"),
}


@pytest.mark.parametrize("flaw", HUB_FLAWS)
def test_flaws_of_hub_files(tmp_path, local_hub, small, flaw):  # noqa: F811
    change, message = HUB_FLAWS[flaw]
    labels = [c % change.get("only", 10) for c in range(change.get("count", 30))]
    if "last" in change:
        labels[-1] = change["last"]
    if change.get("boolean"):
        labels = [c % 2 == 0 for c in labels]
    columns = {key: change[key] for key in ("label", "image", "boolean") if key in change}
    write_parquet(
        tmp_path / "hub/tanganke/eurosat/data/test-00000-of-00001.parquet", [encoded(picture(0, 0))] * len(labels), labels,
        change.get("names"), **columns,
    )
    refused("eurosat", small, message)


def test_repositories_that_are_not_as_they_should_be(tmp_path, local_hub, small):  # noqa: F811
    refused("eurosat", small, "dataset tanganke/eurosat", "no such repository")
    place = write_hub_task(tmp_path / "hub", "eurosat", sizes={"train": 40, "test": 30}, shards=3)
    (place / "data/test-00001-of-00003.parquet").unlink()
    refused("eurosat", small, "file 2 of 3 of split 'test' is missing")
    for file in (place / "data").glob("test-*"):
        file.unlink()
    refused("eurosat", small, "no files of split 'test'", "README.md")
    (place / "data/test-00000-of-00001.parquet").write_bytes(b"PAR1 is not enough")
    refused("eurosat", small, "test-00000-of-00001.parquet is not a readable parquet file")
    tar = tmp_path / "hub/clip-benchmark/wds_fer2013/test/0.tar"
    write_tar(tar, [encoded(picture(c, 0), "JPEG") for c in range(7)], list(range(7)))
    content = tar.read_bytes()
    end = -(-len(content.rstrip(b"\0")) // 512) * 512  # of the last image, without the blocks that close the file
    for cut in (700, 512 * 7, end - 512, end):
        tar.write_bytes(content[:cut])
        refused("fer2013", small, "0.tar")
    write_tar(tar, [encoded(picture(0, 0))], ["angry"], "png")
    refused("fer2013", small, "the label of s0000000 is b'angry', not an integer")
    write_tar(tar, [b"x"], [1], "txt")
    refused("fer2013", small, "s0000000 has cls, txt, not an image and cls")


def test_files_in_a_folder_of_another_name(tmp_path, local_hub, small):  # noqa: F811
    write_hub_dataset(tmp_path / "hub", "tanganke/eurosat", {"train": 40, "test": 30}, 10, folder="default")
    assert len(load("eurosat", small).test_labels) == 30
    write_hub_dataset(tmp_path / "hub", "tanganke/eurosat", {"train": 40, "test": 30}, 10, folder="other")
    refused("eurosat", small, "split 'test' in default, other, not in data")


@pytest.mark.parametrize("task", ["eurosat", "fer2013"])
def test_files_come_through_the_hub_once_and_then_without_a_network(tmp_path, mirror, monkeypatch, task):
    file = small_tasks(tmp_path / "tasks.yaml", SMALL)
    given = vision.Sources("tall", tmp_path / "cache", tasks_file=file)
    write_hub_task(mirror.root / "datasets", task, sizes=dict(zip(("train", "test"), SMALL[task], strict=True)))
    before = vision.inventory(task, given)
    assert not any(item.present for item in before)
    assert before[0].nbytes
    first = load(task, given)
    assert len(first.test_labels) == SMALL[task][1]
    assert first.train_images[:3].shape == (3, SIZE, SIZE, 3)
    asked = len(mirror.asked())
    assert mirror.asked("*test*", "GET")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = load(task, given)
    assert again.sha256 == first.sha256
    assert again.train_images[:3].tobytes() == first.train_images[:3].tobytes()
    assert all(item.present for item in vision.inventory(task, given)[:2])
    assert len(mirror.asked()) == asked
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        load(task, dataclasses.replace(given, cache=tmp_path / "empty"))


# ---------------------------------------------------------------- what is needed


def test_inventory_before_and_after(tmp_path, local_hub, small):  # noqa: F811
    write_hub_task(tmp_path / "hub", "eurosat", sizes={"train": 40, "test": 30}, shards=2)
    items = vision.inventory("eurosat", small)
    assert [item.what for item in items] == ["test images"] * 2 + ["training images"] * 2 + ["decoded test images"]
    file = tmp_path / "hub/tanganke/eurosat/data/test-00001-of-00002.parquet"
    assert items[1].where == "tanganke/eurosat:data/test-00001-of-00002.parquet"
    assert items[1].nbytes == file.stat().st_size
    assert items[0].note == ""
    assert any("random split" in caveat for caveat in vision.caveats("eurosat", "tall"))
    assert items[-1].nbytes == 30 * 224 * 224 * 3
    assert not items[-1].present
    assert not local_hub.fetched
    vision.load("eurosat", small)
    assert vision.inventory("eurosat", small)[-1].present


def test_inventory_without_a_source(tmp_path, local_hub):  # noqa: F811
    items = vision.inventory("emnist", vision.Sources("tall", tmp_path))
    assert (items[0].where, items[0].nbytes) == ("https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip", 561_753_746)
    assert items[0].downloadable
    assert not items[0].present
    file = small_tasks(tmp_path / "tasks.yaml", {})
    table = yaml.safe_load(file.read_text())
    del table["emnist"]["tall"]["archive"]
    file.write_text(yaml.safe_dump(table))
    items = vision.inventory("emnist", vision.Sources("tall", tmp_path, tasks_file=file))
    assert "no repository of the hub" in items[0].where
    assert not items[0].downloadable
    assert not items[0].present
    items = vision.inventory("dtd", vision.Sources("tall", tmp_path))
    assert items[0].nbytes is None
    assert "no such repository" in items[0].note
    write_folder(tmp_path / "data", "dtd", DTD, {"train": 1, "test": 1})
    items = vision.inventory("dtd", vision.Sources("tall", tmp_path, tmp_path / "data"))
    assert items[0].present
    assert items[1].present
