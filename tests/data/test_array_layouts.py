"""NAME.npz in the layouts that data sets are published in: read where they mean one thing, else a line whose advice works."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest

from fusionbench_lite.data import load_task, vision
from fusionbench_lite.data.vision import decoding
from fusionbench_lite.errors import InputError
from tests.data.test_vision_data import SIZE, local_hub, order  # noqa: F401
from tests.data.test_vision_data import load as load_vision
from tests.data.test_vision_data_own_files import EUROSAT
from tests.support.mirror import mirror as mirror

CLASSES = ("cat", "dog", "owl")
LABELS = np.arange(12) % 3
GREY = np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
COLOURED = np.repeat(GREY[..., None], 3, 3)


def write(folder, images=RGB, labels=LABELS, classes=CLASSES, **others):
    """Write the same arrays for both splits; `others` replace or join them."""
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels} | others
    np.savez(folder / "pets.npz", **{name: array for name, array in arrays.items() if array is not None})
    (folder / "pets.json").write_text(json.dumps({"classes": classes}))


def load(folder):
    return load_task("pets", data_dir=folder, seed=0, cache_dir=folder / "cache")


READ = {
    "grey": ({"images": GREY}, COLOURED),
    "grey with a last axis": ({"images": GREY[..., None]}, COLOURED),
    "grey with a first axis": ({"images": GREY[:, None]}, COLOURED),
    "channels first": ({"images": RGB.transpose(0, 3, 1, 2)}, RGB),
    "labels in a column": ({"labels": LABELS[:, None].astype(np.uint8)}, RGB),
    "one-hot": ({"labels": np.eye(3, dtype=np.uint8)[LABELS]}, RGB),
    "one-hot, floats": ({"labels": np.eye(3)[LABELS]}, RGB),
    "names": ({"labels": np.array(CLASSES)[LABELS]}, RGB),
    "names in bytes": ({"labels": np.array(CLASSES, "S")[LABELS]}, RGB),
    "names in a column": ({"labels": np.array(CLASSES)[LABELS][:, None]}, RGB),
    "fortran order and big-endian": ({"images": np.asfortranarray(RGB), "labels": LABELS.astype(">i8")}, RGB),
    "unsigned 64 bits": ({"labels": LABELS.astype(np.uint64)}, RGB),
    "validation arrays": ({"val_images": GREY, "val_labels": LABELS[:3]}, RGB),
}


def test_arrays_that_are_not_read_are_named(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path, val_images=GREY, val_labels=LABELS[:3])
    load(tmp_path)
    assert "pets.npz: arrays val_images, val_labels are not read" in caplog.text


@pytest.mark.parametrize("kind", READ)
def test_what_means_one_thing_is_read_as_the_plain_layout(tmp_path, kind):
    arrays, expected = READ[kind]
    write(tmp_path, **arrays)
    data = load(tmp_path)
    assert data.train_images.tobytes() == data.test_images.tobytes() == expected.tobytes()
    assert data.test_images.shape == expected.shape
    assert data.test_labels.tolist() == data.train_labels.tolist() == LABELS.tolist()
    assert data.test_labels.dtype == np.int64
    write(tmp_path, images=expected)
    assert load(tmp_path).sha256 == data.sha256
    assert data.caveats == ()


def said(folder) -> str:
    with pytest.raises(InputError) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder / "pets") in text
    return text


RESIZED = "numpy.stack([PIL.Image.fromarray(image).resize((32, 32)) for image in {}])"
TO_STORE = {
    "grey of 28": ({"images": GREY[:, :28, :28]}, "shape [12, 28, 28], not [N, 32, 32, 3]", RESIZED.format("train_images")),
    "rgb of 28": ({"images": RGB[:, :28, :28]}, "shape [12, 28, 28, 3], not [N, 32, 32, 3]", RESIZED.format("train_images")),
    "grey of 28 with a first axis": (
        {"images": GREY[:, None, :28, :28]}, "shape [12, 1, 28, 28], not", RESIZED.format("train_images[:, 0]"),
    ),
    "grey of 28 with a last axis": (
        {"images": GREY[:, :28, :28, None]}, "shape [12, 28, 28, 1], not", RESIZED.format("train_images[..., 0]"),
    ),
    "channels first, of 64": (
        {"images": RGB.transpose(0, 3, 1, 2).repeat(2, 2).repeat(2, 3)}, "shape [12, 3, 64, 64], not",
        RESIZED.format("train_images.transpose(0, 2, 3, 1)"),
    ),
    "alpha": ({"images": np.concatenate([RGB, RGB[..., :1]], 3)}, "of 4 channels", "train_images[..., :3]"),
    "flat and grey": ({"images": GREY.reshape(12, -1)}, "shape [12, 1024], not [N, 32, 32, 3]", "train_images.reshape(-1, 32, 32)"),
    "counted last": ({"images": RGB.transpose(1, 2, 3, 0)}, "shape [32, 32, 3, 12], not", "train_images.transpose(3, 0, 1, 2)"),
    "volumes": ({"images": np.repeat(GREY[:, None], 32, 1)}, "shape [12, 32, 32, 32], not", "train_images[:, 16]"),
    "floats to 1": (
        {"images": RGB / 255}, "is float64, not uint8, with values from 0 to 1", "numpy.uint8(numpy.round(train_images * 255))",
    ),
    "floats to 255": (
        {"images": RGB.astype(np.float32)}, "is float32, not uint8, with values from 0 to 255",
        "numpy.uint8(numpy.round(train_images))",
    ),
    "floats from -1": (
        {"images": RGB / 127.5 - 1}, "with values from -1 to 1", "numpy.uint8(numpy.round((train_images + 1) * 127.5))",
    ),
    "integers": ({"images": RGB.astype(np.int64)}, "is int64, not uint8, with values from 0 to 255", "numpy.uint8(train_images)"),
    "16 bits": (
        {"images": RGB.astype(np.uint16) * 257}, "is uint16, not uint8, with values from 0 to 65535",
        "numpy.uint8(numpy.round(train_images * (255 / 65535)))",
    ),
    "12 bits": (
        {"images": RGB.astype(np.uint16) * 16}, "with values from 0 to 4080",
        "numpy.uint8(numpy.round(train_images * (255 / 4095)))",
    ),
    "truths": ({"images": RGB > 127}, "is bool, not uint8", "train_images.astype(numpy.uint8) * 255"),
    "4 bits": ({"images": RGB // 16}, "holds 0 to 15 only, and 255 is white", "train_images * 17"),
    "2 bits": ({"images": RGB // 64}, "holds 0 to 3 only", "train_images * 85"),
    "digits to 16": ({"images": np.uint8(np.round(RGB / 255 * 16))}, "holds 0 to 16 only", "train_images * 15"),
    "zeros and ones": ({"images": (RGB > 127).astype(np.uint8)}, "holds 0 and 1 only", "train_images * 255"),
    "labels from 1": ({"labels": LABELS + 1}, "runs from 1 to 3, but 3 classes are numbered 0 to 2", "train_labels - 1"),
    "labels of floats": ({"labels": LABELS.astype(float)}, "is float64, not an integer type", "train_labels.astype(int)"),
    "labels of truths": ({"labels": LABELS > 0}, "is bool, not an integer type", "train_labels.astype(int)"),
    "labels of objects": (
        {"labels": np.array(list(LABELS), object)}, "an array of Python objects", "numpy.array(train_labels.tolist())",
    ),
    "digits as names": ({"labels": LABELS.astype(str)}, "holds '0', which is no class of pets.json", "train_labels.astype(int)"),
}


@pytest.mark.parametrize("kind", TO_STORE)
def test_the_advice_can_be_followed(tmp_path, kind):
    arrays, message, code = TO_STORE[kind]
    write(tmp_path, **arrays)
    text = said(tmp_path)
    assert message in text
    assert code in text
    name = "train_labels" if "train_labels" in code else "train_images"
    given = {"images": RGB, "labels": LABELS} | arrays
    stored = eval(code, {"numpy": np, "PIL": PIL}, {name: given[name.removeprefix("train_")]})
    write(tmp_path, **(arrays | {name.removeprefix("train_"): stored}))
    data = load(tmp_path)
    assert data.test_images.shape == (12, 32, 32, 3)
    assert data.test_labels.tolist() == (LABELS > 0 if kind == "labels of truths" else LABELS).tolist()
    if kind in ("floats to 1", "floats to 255", "integers", "16 bits", "alpha", "counted last"):
        assert np.array_equal(data.test_images, RGB)


REFUSED = {
    "several labels": ({"labels": np.ones((12, 14), np.uint8)}, "shape [12, 14], not [12]: sets of several labels"),
    "several of the classes": ({"labels": np.eye(3)[LABELS] + np.eye(3)[0]}, "row 0 marks 1 classes or weights"),
    "no class": ({"labels": np.zeros((12, 3), int)}, "row 0 marks 0 classes"),
    "no label": ({"labels": np.where(LABELS == 2, -1, LABELS)}, "-1 often marks images without a label: leave the 4 images out"),
    "labels of fractions": ({"labels": LABELS / 2}, "store class numbers from 0, whole ones"),
    "labels that overflowed": ({"labels": np.full(12, 2**64 - 1, np.uint64)}, "runs from 18446744073709551615"),
    "a name that is none": ({"labels": np.array(["cat", "dog", "owls"])[LABELS]}, "'owls', which is no class of pets.json: did"),
    "names twice": ({"labels": np.array(CLASSES)[LABELS], "classes": ("cat", "cat", "owl")}, "two classes are called 'cat'"),
    "not a number": ({"images": np.where(RGB > 9, RGB, np.nan)}, "NaN or infinite"),
    "normalised": ({"images": RGB / 40.0 - 3}, "undo their normalisation"),
    "two channels": ({"images": RGB[..., :2]}, "red, green and blue as the last axis"),
    "complex": ({"images": RGB.astype(complex)}, "is complex128, not uint8"),
    "one image": ({"images": RGB[0]}, "a single image needs an axis in front, train_images[None]"),
    "flat and coloured": ({"images": RGB.reshape(12, -1)}, "train_images.reshape(-1, H, W, 3) or (-1, 3, H, W)"),
    "other names": ({"train_images": None, "x_train": RGB}, "has no array 'train_images' (it holds"),
    "classes from 1": ({"classes": [1, 2, 3]}, '"classes" must be a list of class names'),
    "classes by other keys": ({"classes": {"1": "a", "2": "b", "3": "c"}}, '"classes" must be a list of class names'),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_could_mean_two_things_is_refused(tmp_path, kind):
    arrays, message = REFUSED[kind]
    write(tmp_path, **arrays)
    assert message in said(tmp_path)


def test_a_pointer_in_the_place_of_the_arrays(tmp_path):
    write(tmp_path)
    (tmp_path / "pets.npz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert "Git LFS pointer" in said(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_descriptions_of_windows(tmp_path, encoding):
    write(tmp_path)
    (tmp_path / "pets.json").write_text(json.dumps({"classes": CLASSES}), encoding=encoding)
    assert load(tmp_path).classes == CLASSES


@pytest.mark.parametrize("classes", [[0, 1, 2], {"2": "2", "0": "0", "1": "1"}], ids=["numbers", "an object"])
def test_classes_as_numbers_or_by_number(tmp_path, classes):
    write(tmp_path, classes=classes)
    assert load(tmp_path).classes == ("0", "1", "2")


def test_classes_without_examples_are_said(tmp_path):
    write(tmp_path, labels=LABELS % 2, test_labels=LABELS)
    (caveat,) = load(tmp_path).caveats
    assert caveat == (
        "pets: 1 of 3 classes have no training image (owl), so that they are not learned; 4 of 12 test images are of these classes."
    )
    write(tmp_path, test_labels=LABELS % 2)
    (caveat,) = load(tmp_path).caveats
    assert caveat == "pets: 1 of 3 classes have no test image (owl): accuracy is that of the others."


# ---------------------------------------------------------------- image tasks


@pytest.mark.parametrize("images", [GREY[:, :28], GREY[:, :28, :, None], GREY[:, None, :28]], ids=["grey", "last", "first"])
def test_image_tasks_read_grey_arrays_of_any_size(tmp_path, local_hub, images):  # noqa: F811
    labels = np.arange(12)[:, None] % 9
    np.savez(tmp_path / "eurosat.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    (tmp_path / "eurosat.json").write_text(json.dumps({"classes": EUROSAT}))
    data = load_vision("eurosat", vision.Sources("tall", tmp_path / "cache", tmp_path))
    assert np.array_equal(data.test_images[3], decoding.square(PIL.Image.fromarray(GREY[3, :28]), SIZE))
    assert data.test_labels.tolist() == labels[:, 0].tolist()
    assert sum("1 of 10 classes have no" in caveat for caveat in data.caveats) == 2
