"""Image tasks from the hub and from the user's own files: real formats, true names and columns, every mistake in one line."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fusionbench_lite.data import vision
from fusionbench_lite.data.arrays import TaskData
from fusionbench_lite.data.vision import decoding, folders, hub_files, stock, tasks
from fusionbench_lite.data.vision.loading import spaced
from fusionbench_lite.errors import InputError
from fusionbench_lite.models import text_heads
from tests.support.mirror import mirror as mirror
from tests.support.vision_data import (
    LocalHub,
    encoded,
    labels_of,
    picture,
    small_tasks,
    write_folder,
    write_hub_dataset,
    write_hub_task,
    write_npz,
    write_parquet,
    write_tar,
)

SIZE = 32
DTD = folders.class_names(tasks.task("dtd", "tall"))[0]
EUROSAT = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential",
           "River", "SeaLake")
SMALL = {"eurosat": (40, 30), "svhn": (40, 30), "fer2013": (21, 14), "pcam": (12, 10), "food101": (101, 101)}


@pytest.fixture(autouse=True)
def order(monkeypatch):
    """Record what class names are compared with the prompts."""
    asked = []
    plain = getattr(text_heads, "check_order", lambda *_: "not comparable")
    monkeypatch.setattr(text_heads, "check_order", lambda *call: (asked.append(call), plain(*call))[1], raising=False)
    return asked


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    stand_in = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(hub_files, "hub", stand_in)
    monkeypatch.setattr(stock, "hub", stand_in)
    return stand_in


@pytest.fixture
def small(tmp_path, local_hub):
    """Sources whose table has small sizes."""
    file = small_tasks(tmp_path / "tasks.yaml", SMALL)
    return vision.Sources("tall", tmp_path / "cache", tasks_file=file)


def load(task: str, given: vision.Sources) -> TaskData:
    return vision.load(task, given, None, SIZE)


def refused(task: str, given: vision.Sources, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        data = load(task, given)
        data.train_images[:1]
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the table of tasks


@pytest.mark.parametrize("variant", vision.VARIANTS)
def test_the_table_agrees_with_the_prompts(variant):
    assert len(vision.names()) == 20
    for name in vision.names():
        task = vision.task(name, variant)
        assert len(text_heads.prompts(name, variant).classnames) == task.classes
        assert tuple(text_heads.prompts(name, variant).classnames) == folders.class_names(task)[0]
        assert (task.hub is None) == ((name, variant) == ("emnist", "tall")) == (task.archive is not None)
        assert all(caveat.endswith(".") and "\n" not in caveat for caveat in vision.caveats(name, variant))
    assert {n for n in vision.names() if vision.task(n, variant).hub and vision.task(n, variant).hub.corrupted} == {
        "stanford_cars", "eurosat", "resisc45", "gtsrb"
    }


def test_published_sizes():
    total = sum(vision.task(name, "tall").test for name in vision.names())
    assert total == sum([19850, 8041, 6300, 2700, 26032, 12630, 10000, 1880, 10000, 8000, 6149, 3669, 32768, 7178, 40000, 10000,
                         25250, 10000, 1821, 10000])
    assert vision.task("emnist", "fusionbench").test == 20800
    assert vision.task("fer2013", "tall").test_sizes == (7178, 3589)


def test_validation_split_of_the_published_code():
    train, held = vision.validation_rows(60000)
    assert train[0] == 36044
    assert (len(train), len(held)) == (55000, 5000)
    parts = torch.utils.data.random_split(range(60000), [55000, 5000], torch.Generator().manual_seed(0))
    assert np.array_equal(held, parts[1].indices)
    published = {
        "sun397": 1985, "stanford_cars": 814, "resisc45": 1890, "svhn": 5000, "gtsrb": 2664, "mnist": 5000, "dtd": 376,
        "cifar100": 5000, "stl10": 500, "flowers102": 102, "oxford_iiit_pet": 368, "pcam": 5000, "fer2013": 2870, "emnist": 5000,
        "cifar10": 5000, "food101": 5000, "fashion_mnist": 5000, "rendered_sst2": 692, "kmnist": 5000,
    }
    assert {name: len(vision.validation_rows(vision.task(name, "tall").train)[1]) for name in published} == published
    assert len(vision.validation_rows(73257, cap=None)[1]) == 7325


def test_unknown_names(tmp_path):
    with pytest.raises(InputError, match="did you mean 'stanford_cars'"):
        vision.task("stanford_car", "tall")
    with pytest.raises(InputError, match="did you mean 'tall'"):
        vision.task("dtd", "tal")
    broken = tmp_path / "tasks.yaml"
    for content, message in (("dtd: {classes: 3}", "incomplete"), ("- a", "one mapping per task"), ("a: [", "not readable YAML")):
        broken = tmp_path / f"{len(content)}{message[:3]}.yaml"
        broken.write_text(content)
        with pytest.raises(InputError, match=message):
            vision.task("dtd", "tall", broken)


@pytest.mark.parametrize(("change", "message"), [
    ({"variant": "tal"}, "did you mean 'tall'"), ({"source": "hubb"}, "did you mean 'hub'"), ({"limit": 0}, "1 or null, got 0"),
    ({"skip_corrupt": -1}, "at least 0"), ({"skip_corrupt": True}, "got True"), ({"severity": 6}, "1 to 5, got 6"),
    ({"corruption": "motion"}, "did you mean 'motion_blur'"), ({"source": "folder"}, "set data_dir"),
])  # fmt: skip
def test_settings_that_cannot_be(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        vision.Sources(**{"variant": "tall", "cache": tmp_path, **change})


# ---------------------------------------------------------------- the hub


def test_a_task_of_the_hub_at_its_true_size(tmp_path, local_hub, order):
    write_hub_dataset(tmp_path / "hub", "tanganke/dtd", {"train": 3760, "test": 1880}, 47, names=DTD, shards=3)
    data = load("dtd", vision.Sources("fusionbench", tmp_path / "cache"))
    assert data.test_images.shape == (1880, SIZE, SIZE, 3)
    assert data.test_images.dtype == np.uint8
    assert data.test_labels.dtype == np.int64
    assert data.classes == DTD
    assert data.num_classes == 47
    assert data.test_labels.tolist() == labels_of(1880, 47, 1)
    assert order == [("dtd", "fusionbench", DTD)]
    assert len(data.train_images) == len(data.train_labels) == 3760
    assert not any("train" in file for file in local_hub.fetched)
    assert data.files[f"tanganke/dtd@{'c' * 40}:data/test-00000-of-00003.parquet"]
    before = data.sha256
    assert not any("train" in file for file in local_hub.fetched)
    rows = np.array([3759, 0, 1300])
    assert data.train_labels[rows].tolist() == [labels_of(3760, 47, 0)[row] for row in rows]
    assert data.train_images[rows].shape == (3, SIZE, SIZE, 3)
    assert any("train" in file for file in local_hub.fetched)
    assert data.sha256 == before


def test_images_are_the_decoded_ones(tmp_path, local_hub, small):
    write_hub_task(tmp_path / "hub", "eurosat", sizes={"train": 40, "test": 30})
    data = load("eurosat", small)
    labels = labels_of(30, 10, 1)
    expected = np.stack([
        decoding.square(Image.fromarray(picture(label, (row + 1) % 40)), SIZE) for row, label in enumerate(labels)
    ])
    assert np.array_equal(np.asarray(data.test_images), expected)
    assert np.array_equal(data.test_images[3:9:2], expected[3:9:2])
    assert np.array_equal(data.test_images[-1], expected[-1])
    assert np.array_equal(data.test_images[np.array([5, 5, 2])], expected[[5, 5, 2]])
    assert np.array_equal(data.test_images[np.array(labels) == 4], expected[np.array(labels) == 4])
    assert data.test_images[np.zeros(0, np.int64)].shape == (0, SIZE, SIZE, 3)
    with pytest.raises(IndexError):
        data.test_images[30]
    assert any("EuroSAT" in caveat for caveat in data.caveats)


def test_a_second_load_decodes_nothing_and_has_the_same_hash(tmp_path, local_hub, small, monkeypatch):
    write_hub_task(tmp_path / "hub", "svhn", sizes={"train": 40, "test": 30})
    first = load("svhn", small)
    before = np.asarray(first.test_images)
    monkeypatch.setattr(decoding, "opened", lambda _: pytest.fail("an image was decoded"))
    second = load("svhn", small)
    assert np.array_equal(np.asarray(second.test_images), before)
    assert second.sha256 == first.sha256


def test_the_hash_follows_the_content(tmp_path, local_hub, small):
    write_hub_task(tmp_path / "hub", "svhn", sizes={"train": 40, "test": 30})
    first = load("svhn", small).sha256
    assert load("svhn", dataclasses.replace(small, limit=7)).sha256 != first
    write_hub_task(tmp_path / "hub", "svhn", sizes={"train": 40, "test": 30}, seed=5)
    assert load("svhn", small).sha256 != first
    write_hub_task(tmp_path / "hub", "svhn", sizes={"train": 40, "test": 30})
    assert load("svhn", small).sha256 == first
    write_hub_task(tmp_path / "other", "svhn", sizes={"train": 40, "test": 30}, seed=5)
    (tmp_path / "other/ufldl-stanford/svhn/cropped_digits/train-00000-of-00001.parquet").replace(
        tmp_path / "hub/ufldl-stanford/svhn/cropped_digits/train-00000-of-00001.parquet"
    )
    assert load("svhn", small).sha256 != first


def test_a_limit_is_spread_over_the_split(tmp_path, local_hub, small, monkeypatch):
    assert spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert spaced(10, 10).tolist() == spaced(10, 99).tolist() == list(range(10))
    assert spaced(26032, 1).tolist() == [0]
    place = tmp_path / "hub/tanganke/eurosat/data"
    labels = sorted(labels_of(30, 10))
    write_parquet(place / "test-00000-of-00001.parquet", [encoded(picture(c, 0)) for c in labels], labels, None, row_group=7)
    opened, count = decoding.opened, []
    monkeypatch.setattr(decoding, "opened", lambda content: count.append(1) or opened(content))
    data = load("eurosat", dataclasses.replace(small, limit=10))
    assert len(count) == 10
    assert data.test_labels.tolist() == list(range(10))
    assert data.test_images.shape[0] == 10
    assert np.array_equal(data.test_images[4], decoding.square(Image.fromarray(picture(4, 0)), SIZE))


def test_fields_of_parquet_as_the_datasets_library_writes_it(tmp_path, local_hub, small, order):
    """The real library writes the files here; labels, names and bytes are those that it reads."""
    datasets = pytest.importorskip("datasets")
    labels = labels_of(30, 10)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"name {n}" for n in range(10)])})
    images = [{"bytes": encoded(picture(c, 0), "JPEG"), "path": None} for c in labels]
    place = tmp_path / "hub/tanganke/eurosat/data/test-00000-of-00001.parquet"
    place.parent.mkdir(parents=True)
    datasets.Dataset.from_dict({"image": images, "label": labels}, features).to_parquet(place)
    data = load("eurosat", small)
    assert data.test_labels.tolist() == labels
    assert order[0][2] == tuple(f"name {n}" for n in range(10))
    theirs = datasets.Dataset.from_parquet(str(place), cache_dir=str(tmp_path / "theirs"))
    assert np.array_equal(data.test_images[7], decoding.square(theirs[7]["image"], SIZE))


def test_boolean_labels_and_other_split_names(tmp_path, local_hub, small):
    write_hub_task(tmp_path / "hub", "pcam", sizes={"train": 12, "test": 10})
    assert sorted(load("pcam", small).test_labels.tolist()) == [0] * 5 + [1] * 5
    write_hub_task(tmp_path / "hub", "food101", sizes={"train": 101, "test": 101})
    assert load("food101", small).test_images.shape[0] == 101
    assert any("validation-" in file for file in local_hub.fetched)


@pytest.mark.parametrize("variant", vision.VARIANTS)
def test_tar_files_of_faces(tmp_path, local_hub, small, order, variant):
    labels = labels_of(14, 7)
    for shard, rows in enumerate(np.array_split(np.arange(14), 11)):
        write_tar(
            tmp_path / f"hub/clip-benchmark/wds_fer2013/test/{shard}.tar",
            [encoded(picture(labels[row], 0), "JPEG") for row in rows], [labels[row] for row in rows],
        )
    data = load("fer2013", dataclasses.replace(small, variant=variant))
    assert data.test_labels.tolist() == labels
    expected = decoding.square(decoding.opened(encoded(picture(labels[13], 0), "JPEG")), SIZE)
    assert np.array_equal(data.test_images[13], expected)
    # The order of the class names is known to differ in the variant "tall": it is never compared.
    assert [call[2] for call in order] == ([None] if variant == "fusionbench" else [])
    assert any("1/3,589" in caveat for caveat in data.caveats) == (variant == "tall")


def test_corrupted_splits_of_the_hub(tmp_path, local_hub, small):
    given = dataclasses.replace(small, variant="fusionbench", corruption="contrast")
    write_hub_task(tmp_path / "hub", "eurosat", sizes={"train": 40, "test": 30, "contrast": 30}, seed=2)
    clean = load("eurosat", dataclasses.replace(given, corruption=None))
    data = load("eurosat", given)
    assert any("contrast-00000" in file for file in local_hub.fetched)
    assert data.sha256 != clean.sha256
    refused("svhn", given, "no published split 'contrast'", "stanford_cars, resisc45, eurosat, gtsrb", "generated")


def test_generated_corruptions_depend_on_seed_and_row(tmp_path, local_hub, small):
    write_hub_task(tmp_path / "hub", "svhn", sizes={"train": 40, "test": 30})
    given = dataclasses.replace(small, corruption="gaussian_noise", corruption_from="generated")
    clean, first = load("svhn", small), load("svhn", given)
    assert np.array_equal(np.asarray(load("svhn", given).test_images), np.asarray(first.test_images))
    few = load("svhn", dataclasses.replace(given, limit=3))
    assert np.array_equal(few.test_images[1], first.test_images[10])
    other = load("svhn", dataclasses.replace(given, seed=1))
    assert len({data.sha256 for data in (clean, first, few, other)}) == 4
    assert any("generated here" in caveat for caveat in first.caveats)
    write_parquet(
        tmp_path / "hub/ufldl-stanford/svhn/cropped_digits/test-00000-of-00001.parquet", [encoded(picture(0, 0))] * 30,
        labels_of(30, 10), None,
    )
    alike = load("svhn", given)
    assert not np.array_equal(alike.test_images[0], alike.test_images[1])
    difference = np.abs(np.asarray(first.test_images).astype(int) - np.asarray(clean.test_images))
    assert 2 < difference.mean() < 60
    assert np.array_equal(first.train_images[np.arange(3)], clean.train_images[np.arange(3)])


def test_corrupt_images_are_counted_named_and_left_out(tmp_path, local_hub, small):
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
def test_flaws_of_hub_files(tmp_path, local_hub, small, flaw):
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


def test_repositories_that_are_not_as_they_should_be(tmp_path, local_hub, small):
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


def test_files_in_a_folder_of_another_name(tmp_path, local_hub, small):
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


# ---------------------------------------------------------------- the user's own files


def test_class_folders_in_the_order_of_the_prompts(tmp_path, local_hub, order):
    names = [f"{number:03d}.{name.title()}" for number, name in zip(range(900, 853, -1), DTD, strict=True)]
    write_folder(tmp_path / "data", "dtd", names, {"train": 2, "test": 1})
    (tmp_path / "data/dtd/test" / names[0] / "Thumbs.db").write_bytes(b"x")
    data = load("dtd", vision.Sources("tall", tmp_path / "cache", tmp_path / "data"))
    assert data.test_labels.tolist() == list(range(47))
    assert np.array_equal(data.test_images[5], decoding.square(Image.fromarray(picture(5, 0)), SIZE))
    assert any("47 test images, the published split 1,880" in caveat for caveat in data.caveats)
    assert any("1 files in" in caveat and "no images" in caveat for caveat in data.caveats)
    assert len(data.train_labels) == 94
    assert np.asarray(data.train_labels).tolist() == np.repeat(np.arange(47), 2).tolist()
    assert order[0] == ("dtd", "tall", None)


def test_class_folders_of_the_datasets_own_names(tmp_path, local_hub):
    write_folder(tmp_path, "eurosat", [name.lower() for name in EUROSAT], {"train": 1, "test": 2})
    data = load("eurosat", vision.Sources("tall", tmp_path / "cache", tmp_path))
    assert data.test_labels.tolist() == np.repeat(np.arange(10), 2).tolist()


@pytest.mark.parametrize("variant", vision.VARIANTS)
def test_faces_keep_the_alphabetical_order(tmp_path, local_hub, variant):
    names = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    write_folder(tmp_path, "fer2013", names, {"test": 1})
    data = load("fer2013", vision.Sources(variant, tmp_path / "cache", tmp_path))
    assert [data.test_images[row].tobytes() for row in range(7)] == [
        decoding.square(Image.fromarray(picture(row, 0)), SIZE).tobytes() for row in range(7)
    ]
    assert data.test_labels.tolist() == list(range(7))


def test_names_of_the_other_variant_give_the_same_order(tmp_path, local_hub):
    task = tasks.task("flowers102", "fusionbench")
    names = folders.class_names(task)[1]
    assert "air plant" in names
    assert folders.ordered(tmp_path, sorted(names), task) == names


def test_flaws_of_class_folders(tmp_path, local_hub):
    given = vision.Sources("tall", tmp_path / "cache", tmp_path)
    place = write_folder(tmp_path, "dtd", DTD, {"train": 1, "test": 1})
    banded, striped = place / "test/banded", place / "test/striped"
    banded.rename(tmp_path / "banded")
    refused("dtd", given, "class folder 'banded' of task 'dtd' is missing in", "add it")
    (tmp_path / "banded").rename(place / "test/bandit")
    refused("dtd", given, "'banded'", "is it 'bandit'?")
    (place / "test/bandit").rename(banded)
    (place / "test/tartan").mkdir()
    refused("dtd", given, "test/tartan is no class of task 'dtd'")
    (place / "test/tartan").rmdir()
    next(striped.iterdir()).unlink()
    refused("dtd", given, "striped holds no image")
    (striped / "0.png").write_bytes(b"broken")
    refused("dtd", given, "1 of 47 images", "striped/0.png", "data.skip_corrupt=1")
    (striped / "0.png").write_bytes(encoded(picture(1, 0)))
    assert len(load("dtd", given).test_labels) == 47
    place = write_folder(tmp_path, "gtsrb", [f"{number:05d}" for number in range(43)], {"train": 1, "test": 1})
    (place / "test/00007").rename(place / "test/00100")
    refused("gtsrb", given, "gtsrb/test", "have to be numbered 0 to 42 but 7 is missing")
    (place / "test/00100").rename(tmp_path / "00100")
    refused("gtsrb", given, "has 42 class folders (00000, 00001, 00002, ...)", "43 classes")


def test_a_changed_file_is_decoded_anew(tmp_path, local_hub):
    given = vision.Sources("tall", tmp_path / "cache", tmp_path)
    place = write_folder(tmp_path, "eurosat", EUROSAT, {"train": 1, "test": 1}, "BMP")
    first = load("eurosat", given)
    file = place / "test/Forest/0000.bmp"
    size = file.stat().st_size
    file.write_bytes(encoded(picture(7, 7), "BMP"))
    assert file.stat().st_size == size
    second = load("eurosat", given)
    assert np.array_equal(second.test_images[1], decoding.square(Image.fromarray(picture(7, 7)), SIZE))
    assert first.sha256 != second.sha256


def test_a_folder_without_training_images(tmp_path, local_hub):
    write_folder(tmp_path, "eurosat", EUROSAT, {"test": 1})
    data = load("eurosat", vision.Sources("tall", tmp_path / "cache", tmp_path))
    assert data.sha256
    assert len(data.train_images) == 0
    with pytest.raises(InputError, match=r"no training images below .*eurosat/train"):
        data.train_images[:1]
    assert not local_hub.fetched


def test_arrays_of_any_size(tmp_path, local_hub):
    write_npz(tmp_path, "eurosat", EUROSAT, {"train": 12, "test": 10}, (48, 40))
    data = load("eurosat", vision.Sources("tall", tmp_path / "cache", tmp_path))
    with np.load(tmp_path / "eurosat.npz") as archive:
        expected = np.stack([decoding.square(Image.fromarray(image), SIZE) for image in archive["test_images"]])
        assert np.array_equal(np.asarray(data.test_images), expected)
        assert np.array_equal(data.train_labels[:], archive["train_labels"])
    assert any("10 test images" in caveat for caveat in data.caveats)
    write_npz(tmp_path, "dtd", [str(number) for number in range(47)], {"train": 47, "test": 47})
    assert len(load("dtd", vision.Sources("tall", tmp_path / "cache", tmp_path)).test_labels) == 47
    write_npz(tmp_path, "dtd", DTD[:5], {"train": 5, "test": 5})
    refused("dtd", vision.Sources("tall", tmp_path / "cache", tmp_path), "there are 5 classes, but task 'dtd' has 47")
    (tmp_path / "eurosat.json").write_text(json.dumps({"classes": list(EUROSAT), "test": 11}))
    refused("eurosat", vision.Sources("tall", tmp_path / "cache", tmp_path), "holds 10 examples, but eurosat.json says 11")


def test_where_images_are_looked_for(tmp_path, local_hub, small, caplog):
    (tmp_path / "data/eurosat").mkdir(parents=True)
    given = dataclasses.replace(small, data_dir=tmp_path / "data")
    refused("eurosat", dataclasses.replace(given, source="folder"), "no test images below", "eurosat/test/CLASS", "eurosat.npz")
    write_hub_task(tmp_path / "hub", "eurosat", sizes={"train": 40, "test": 30})
    assert len(load("eurosat", given).test_labels) == 30
    assert "is not a layout that is known" in caplog.text
    write_folder(tmp_path / "data", "eurosat", EUROSAT, {"train": 1, "test": 1})
    assert len(load("eurosat", given).test_labels) == 10
    write_npz(tmp_path / "data", "eurosat", EUROSAT, {"train": 12, "test": 11})
    assert len(load("eurosat", given).test_labels) == 11
    assert len(load("eurosat", dataclasses.replace(given, source="hub")).test_labels) == 30
    refused("eurosat", dataclasses.replace(given, data_dir=tmp_path / "nowhere"), "nowhere is no folder")


# ---------------------------------------------------------------- what is needed


def test_inventory_before_and_after(tmp_path, local_hub, small):
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


def test_inventory_without_a_source(tmp_path, local_hub):
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
