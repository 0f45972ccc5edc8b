"""Class folders of a Mac, a notebook, an archive, a phone: right counts, or the file or folder that is in the way."""

from __future__ import annotations

import dataclasses
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from fusionbench_lite.data import vision
from fusionbench_lite.data.vision import decoding
from tests.data.test_vision_data import SIZE, load, local_hub, order, refused  # noqa: F401
from tests.data.test_vision_data_own_files import EUROSAT
from tests.support.mirror import mirror as mirror
from tests.support.vision_data import encoded, picture, write_folder

PNG = encoded(picture(3, 9))


@pytest.fixture
def own(tmp_path, local_hub):  # noqa: F811
    """The class folders of a test split, one image each, and the sources that read them."""
    place = write_folder(tmp_path / "data", "eurosat", EUROSAT, {"test": 1})
    return place / "test", vision.Sources("tall", tmp_path / "cache", tmp_path / "data")


def put(path, content=PNG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


LEFT_BEHIND = (
    ".DS_Store", "._0000.png", "Thumbs.db", "desktop.ini", "Icon\r", ".hidden.png", ".ipynb_checkpoints/0000-checkpoint.png",
    "__MACOSX/0000.png", "__MACOSX/._0000.png", "@eaDir/0000.png", ".thumbnails/0000.png", "$RECYCLE.BIN/0000.png",
)


@pytest.mark.parametrize("name", LEFT_BEHIND)
@pytest.mark.parametrize("place", ["", "River"])
def test_what_systems_leave_behind_is_neither_an_image_nor_a_class(own, place, name):
    folder, given = own
    put(folder / place / name)
    data = load("eurosat", given)
    assert data.test_labels.tolist() == list(range(10))
    assert not any("left out" in caveat for caveat in data.caveats)


@pytest.mark.parametrize("inner", ["more", "test/River", "thumbs/small"])
def test_a_folder_with_images_in_a_class_is_refused(own, inner):
    folder, given = own
    image = put(folder / "River" / inner / "0.png")
    nested = folder / "River" / inner.partition("/")[0]
    refused("eurosat", given, f"{nested} is a folder with images inside a class folder (first: {image}): move its images into")
    shutil.move(image, folder / "River/1.png")
    assert load("eurosat", given).test_labels.tolist() == [*range(9), 8, 9]  # what is left of the folder is empty


def test_one_class_in_two_folders(own):
    folder, given = own
    put(folder / "sea_lake/0.png")
    refused("eurosat", given, "class folders 'SeaLake' and 'sea_lake'", "stand for one class: put the images of both into one")


def test_numbered_twice(tmp_path, local_hub):  # noqa: F811
    place = write_folder(tmp_path, "mnist", [str(number) for number in range(10)], {"test": 1})
    put(place / "test/03/0.png")
    refused("mnist", vision.Sources("tall", tmp_path / "cache", tmp_path), "class folders", "'3'", "'03'", "stand for one class")


def test_links(own, tmp_path):
    folder, given = own
    store = put(tmp_path / "store/a.png")
    (folder / "River/1.png").symlink_to(store)
    os.link(folder / "Forest/0000.png", folder / "Forest/0001.png")  # equal images are often stored so, and are two
    data = load("eurosat", given)
    assert len(data.test_labels) == 12
    assert not any("are links" in caveat for caveat in data.caveats)
    (folder / "River/2.png").symlink_to(folder / "River/0000.png")
    (folder / "Forest/3.png").symlink_to(store)
    said = " ".join(load("eurosat", given).caveats)
    assert "2 images are links to files that count already" in said
    assert f"(first: {folder / 'River/1.png'}, which is {folder / 'Forest/3.png'})" in said
    shutil.rmtree(folder / "Highway")
    (folder / "Highway").symlink_to(folder / "Forest")
    refused("eurosat", given, "class folders 'Forest' and 'Highway' are one folder through a link")
    (folder / "Highway").unlink()
    (folder / "Highway").mkdir()
    (folder / "Highway/0.png").symlink_to(tmp_path / "gone.png")
    refused("eurosat", given, "cannot read", "Highway/0.png")


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "scan.dcm", "a.jxl", "raw.CR2"])
def test_images_of_formats_that_are_not_read_are_named_and_counted(own, name):
    folder, given = own
    heads = {"IMG_1.HEIC": b"\0\0\0\x18ftypheic", "scan.dcm": bytes(128) + b"DICM", "a.jxl": b"\xff\x0a", "raw.CR2": b"II*\0"}
    path = put(folder / "River" / name, heads[name] + bytes(300))
    kind = {"IMG_1.HEIC": "HEIC", "scan.dcm": "DICOM", "a.jxl": "JPEG XL", "raw.CR2": ""}[name]
    refused("eurosat", given, "1 of 11 images", f"{path}; ", kind, "data.skip_corrupt=1")
    data = load("eurosat", dataclasses.replace(given, skip_corrupt=1))
    assert len(data.test_labels) == 10
    assert any(str(path) in caveat and "could not be decoded" in caveat for caveat in data.caveats)


@pytest.mark.parametrize(("name", "kind"), [
    ("UP.JPEG", "JPEG"), ("a.jfif", "JPEG"), ("a.pbm", "PPM"), ("a.tga", "TGA"), ("a.dib", "DIB"), ("png.jpg", "PNG"),
    ("a.jp2", "JPEG2000"),
])
def test_rarer_suffixes_and_wrong_ones(own, name, kind):
    folder, given = own
    image = Image.fromarray(picture(3, 9))
    content = encoded(image.convert("1") if kind == "PPM" else image, kind)
    put(folder / "River" / name, content)
    data = load("eurosat", given)
    assert len(data.test_labels) == 11
    square = decoding.square(decoding.opened(content), SIZE)
    assert any(np.array_equal(data.test_images[row], square) for row in (8, 9))


def test_files_that_are_no_images_by_name(own):
    folder, given = own
    text, unnamed = put(folder / "River/notes.txt", b"x"), put(folder / "River/00012")
    put(folder / "loose.png")
    said = " ".join(load("eurosat", given).caveats)
    assert f"1 files in {folder} are no images and were left out (first: {text})" in said
    assert f"1 files in {folder} begin like images but have no suffix of one (first: {unnamed}, PNG)" in said
    assert f"1 images beside the class folders of {folder} were left out (first: loose.png)" in said
    (folder / "River/0000.png").unlink()
    refused("eurosat", given, f"{folder / 'River'} holds no image", "00012 begins like PNG: give the files their suffix")
    unnamed.unlink()
    refused("eurosat", given, "holds no image", "it has notes.txt: put its images there")


def test_published_folders_that_are_split_here_skip_hidden_files(tmp_path, local_hub, monkeypatch):  # noqa: F811
    from fusionbench_lite.data.vision import published_folders
    from fusionbench_lite.data.vision.tasks import task

    monkeypatch.setattr(published_folders, "_EUROSAT_HELD", 1)
    for number, name in enumerate(EUROSAT):
        for image in range(4):
            put(tmp_path / name / f"{name}_{image}.jpg", encoded(picture(number, image), "JPEG"))
    entry = task("eurosat", "tall")
    plain = published_folders._eurosat(tmp_path, "test", entry)
    put(tmp_path / ".ipynb_checkpoints/a.jpg")
    put(tmp_path / "River/._River_0.jpg")
    again = published_folders._eurosat(tmp_path, "test", entry)
    assert again[0] == plain[0]
    assert again[1].tolist() == plain[1].tolist() == list(range(10))
