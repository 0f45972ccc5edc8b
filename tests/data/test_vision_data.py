"""Image tasks from the hub and from the user's own files: real formats, true names and columns, every mistake in one line."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
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
    write_hub_dataset,
    write_hub_task,
    write_parquet,
    write_tar,
)

SIZE = 32
DTD = folders.class_names(tasks.task("dtd", "tall"))[0]
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
