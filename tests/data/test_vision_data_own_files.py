"""The user's own images: class folders, arrays, and where they are looked for."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from fusionbench_lite.data import vision
from fusionbench_lite.data.vision import decoding, folders, tasks
from fusionbench_lite.errors import InputError
from tests.data.test_vision_data import DTD, SIZE, load, local_hub, order, refused, small  # noqa: F401
from tests.support.mirror import mirror as mirror
from tests.support.vision_data import (
    encoded,
    picture,
    write_folder,
    write_hub_task,
    write_npz,
)

EUROSAT = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential",
           "River", "SeaLake")


# ---------------------------------------------------------------- the user's own files


def test_class_folders_in_the_order_of_the_prompts(tmp_path, local_hub, order):  # noqa: F811
    names = [f"{number:03d}.{name.title()}" for number, name in zip(range(900, 853, -1), DTD, strict=True)]
    write_folder(tmp_path / "data", "dtd", names, {"train": 2, "test": 1})
    for left in ("Thumbs.db", "notes.txt"):  # the first is the system's, the second the user's
        (tmp_path / "data/dtd/test" / names[0] / left).write_bytes(b"x")
    data = load("dtd", vision.Sources("tall", tmp_path / "cache", tmp_path / "data"))
    assert data.test_labels.tolist() == list(range(47))
    assert np.array_equal(data.test_images[5], decoding.square(Image.fromarray(picture(5, 0)), SIZE))
    assert any("47 test images, the published split 1,880" in caveat for caveat in data.caveats)
    assert any("1 files in" in caveat and "no images" in caveat for caveat in data.caveats)
    assert len(data.train_labels) == 94
    assert np.asarray(data.train_labels).tolist() == np.repeat(np.arange(47), 2).tolist()
    assert order[0] == ("dtd", "tall", None)


def test_class_folders_of_the_datasets_own_names(tmp_path, local_hub):  # noqa: F811
    write_folder(tmp_path, "eurosat", [name.lower() for name in EUROSAT], {"train": 1, "test": 2})
    data = load("eurosat", vision.Sources("tall", tmp_path / "cache", tmp_path))
    assert data.test_labels.tolist() == np.repeat(np.arange(10), 2).tolist()


@pytest.mark.parametrize("variant", vision.VARIANTS)
def test_faces_keep_the_alphabetical_order(tmp_path, local_hub, variant):  # noqa: F811
    names = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    write_folder(tmp_path, "fer2013", names, {"test": 1})
    data = load("fer2013", vision.Sources(variant, tmp_path / "cache", tmp_path))
    assert [data.test_images[row].tobytes() for row in range(7)] == [
        decoding.square(Image.fromarray(picture(row, 0)), SIZE).tobytes() for row in range(7)
    ]
    assert data.test_labels.tolist() == list(range(7))


def test_names_of_the_other_variant_give_the_same_order(tmp_path, local_hub):  # noqa: F811
    task = tasks.task("flowers102", "fusionbench")
    names = folders.class_names(task)[1]
    assert "air plant" in names
    assert folders.ordered(tmp_path, sorted(names), task) == names


def test_flaws_of_class_folders(tmp_path, local_hub):  # noqa: F811
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


def test_a_changed_file_is_decoded_anew(tmp_path, local_hub):  # noqa: F811
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


def test_a_folder_without_training_images(tmp_path, local_hub):  # noqa: F811
    write_folder(tmp_path, "eurosat", EUROSAT, {"test": 1})
    data = load("eurosat", vision.Sources("tall", tmp_path / "cache", tmp_path))
    assert data.sha256
    assert len(data.train_images) == 0
    with pytest.raises(InputError, match=r"no training images below .*eurosat/train"):
        data.train_images[:1]
    assert not local_hub.fetched


def test_arrays_of_any_size(tmp_path, local_hub):  # noqa: F811
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


def test_where_images_are_looked_for(tmp_path, local_hub, small, caplog):  # noqa: F811
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
