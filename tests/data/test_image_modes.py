"""Images of unusual modes: the picture that they have in 8 bits, or a reason; and what results say of them."""

from __future__ import annotations

import dataclasses
import io
import struct

import numpy as np
import pytest
from PIL import Image

from fusionbench_lite.data import originals, vision
from fusionbench_lite.data.vision import decoding, loading, modes
from tests.data.test_vision_data import SIZE, load, local_hub, order, refused, small  # noqa: F401
from tests.data.test_vision_data_own_files import EUROSAT
from tests.support.mirror import mirror as mirror
from tests.support.vision_data import encoded, labels_of, picture, write_folder, write_parquet

GREY = (np.add.outer(np.arange(24), np.arange(30)) * 4 + 3).astype(np.uint8)
"""Levels 3 to 211, so that neither 0 nor white is there."""


def tiff(values: np.ndarray, *, bits: int | None = None, content: bytes | None = None, white_is_zero: bool = False) -> bytes:
    """Return an uncompressed TIFF file of one channel, as `values` are typed and ordered."""
    end = ">" if values.dtype.byteorder == ">" else "<"
    content = values.tobytes() if content is None else content
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    tags = [
        (256, 3, width), (257, 3, height), (258, 3, bits or values.dtype.itemsize * 8), (259, 3, 1),
        (262, 3, int(not white_is_zero)), (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(content)), (339, 3, kind),
    ]
    packed = [struct.pack(end + {3: "HHIHxx", 4: "HHII"}[form], tag, form, 1, value) for tag, form, value in tags]
    head = (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(f"{end}I", 8 + len(content))
    return head + content + struct.pack(f"{end}H", len(tags)) + b"".join(packed) + bytes(4)


def in_12_bits() -> bytes:
    """Return the picture as pairs of 12-bit numbers in three bytes."""
    values = (GREY.astype(int) * 4095 + 127) // 255
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist())


DEEP = GREY.astype(np.uint16) * 257
SAME = {
    "png of 16 bits": encoded(Image.fromarray(DEEP)),
    "tiff of 16 bits": tiff(DEEP),
    "tiff of 16 bits, big-endian": tiff(DEEP.astype(">u2")),
    "tiff of 16 bits, white is zero": tiff(65535 - DEEP, white_is_zero=True),
    "tiff of 12 bits": tiff(DEEP, bits=12, content=in_12_bits()),
    "pgm of 16 bits": b"P5 30 24 65535\n" + DEEP.astype(">u2").tobytes(),
    "pgm of 10 bits": b"P5 30 24 1023\n" + ((GREY.astype(int) * 1023 + 127) // 255).astype(">u2").tobytes(),
    "tiff of 32-bit integers": tiff(DEEP.astype(np.int32)),
    "tiff of floats to 1": tiff((GREY / 255).astype(np.float32)),
    "tiff of floats to 1, white is zero": tiff((1 - GREY / 255).astype(np.float32), white_is_zero=True),
    "tiff of floats to 255": tiff(GREY.astype(np.float32)),
}


@pytest.mark.parametrize("kind", SAME)
def test_the_picture_is_that_of_8_bits(kind):
    image = decoding.opened(SAME[kind])
    assert image.mode[0] in "IF"
    assert np.array_equal(np.asarray(decoding.rgb(image)), np.asarray(Image.fromarray(GREY).convert("RGB")))
    assert np.array_equal(decoding.square(image, SIZE), decoding.square(Image.fromarray(GREY), SIZE))


REFUSED = {
    "16 bits that hold 8": (tiff(GREY.astype(np.uint16)), "end at 211, as those of 8 bits"),
    "32 bits that hold 8": (tiff(GREY.astype(np.int32)), "end at 211, as those of 8 bits"),
    "32 bits beyond 16": (tiff(GREY.astype(np.int32) << 20), "a range that is not known"),
    "signed": (tiff(GREY.astype(np.int16) - 100), "run from -97 to 111, a range"),
    "floats around zero": (tiff((GREY / 127 - 1).astype(np.float32)), "neither 0 to 1 nor 0 to 255"),
    "floats of 16 bits": (tiff(DEEP.astype(np.float32)), "neither 0 to 1 nor 0 to 255"),
    "floats a little above 1": (tiff((GREY / 200).astype(np.float32)), "run from 0.015 to 1.055, neither"),
    "not a number": (tiff(np.full((4, 4), np.nan, np.float32)), "NaN or infinite"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_without_a_known_range_are_refused(kind):
    content, reason = REFUSED[kind]
    with pytest.raises(decoding.CorruptImage, match=reason):
        decoding.rgb(decoding.opened(content))


def test_a_mode_without_a_conversion_is_refused():
    with pytest.raises(decoding.CorruptImage, match="mode La"):
        decoding.rgb(Image.new("La", (4, 4)))


def test_black_is_black_in_every_mode():
    for dtype in (np.uint16, np.int32, np.float32):
        image, traits = modes.with_traits(decoding.opened(tiff(np.zeros((8, 8), dtype))))
        assert not np.asarray(image).any()
        assert traits == 0


def ordinary():
    smooth = Image.fromarray(picture(3, 1)).resize((60, 50))
    frames = io.BytesIO()
    smooth.save(frames, "TIFF", save_all=True, append_images=[smooth.rotate(90)])
    yield "rgb", smooth
    yield "pages", decoding.opened(frames.getvalue())
    yield "palette of 4 bits", smooth.quantize(16)
    yield "palette with transparency", decoding.opened(encoded_with(smooth.quantize(200), "PNG", transparency=bytes(range(200))))
    yield "grey with alpha", smooth.convert("LA")
    yield "cmyk", decoding.opened(encoded(smooth.convert("CMYK"), "JPEG"))
    yield "one bit", smooth.convert("1")
    yield "ycbcr", smooth.convert("YCbCr")
    yield "one pixel", smooth.crop((0, 0, 1, 1))


def encoded_with(image: Image.Image, kind: str, **options) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


@pytest.mark.parametrize(("kind", "image"), list(ordinary()), ids=lambda value: value if isinstance(value, str) else "")
def test_images_of_8_bits_are_converted_as_ever(kind, image):
    assert decoding.rgb(image).tobytes() == image.convert("RGB").tobytes()


NOT_IMAGES = {
    "heic": (b"\0\0\0\x18ftypheic" + bytes(50), "begins like HEIC, and Pillow cannot read it here"),
    "dicom": (bytes(128) + b"DICM" + bytes(60), "begins like DICOM"),
    "html": (b"\n<!DOCTYPE html><html>rate limited</html>", "it is a page of HTML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "drawing": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    "zeros": (bytes(400), "it is zeros"),
    "video": (b"\0\0\0\x14ftypqt  " + bytes(20), "it is a video"),
    "text": (b"no image", "no image format that is known"),
    "nothing": (b"", "there are no bytes"),
}


@pytest.mark.parametrize("kind", NOT_IMAGES)
def test_what_is_no_image_is_told_by_its_content(kind):
    content, reason = NOT_IMAGES[kind]
    with pytest.raises(decoding.CorruptImage, match=reason):
        decoding.opened(content)


# ---------------------------------------------------------------- through the doors


@pytest.fixture
def own(tmp_path, local_hub):  # noqa: F811
    """Class folders with two grey images per class, of 8 bits, and the sources that read them."""
    place = write_folder(tmp_path / "data", "eurosat", EUROSAT, {"train": 1, "test": 2})
    return place, vision.Sources("tall", tmp_path / "cache", tmp_path / "data")


def test_class_folders_and_originals_read_16_bits(own):
    place, given = own
    for split in ("train", "test"):
        (place / split / "Forest/0000.png").write_bytes(SAME["png of 16 bits"])
    data = load("eurosat", given)
    assert np.array_equal(data.test_images[2], decoding.square(Image.fromarray(GREY), SIZE))
    assert np.array_equal(data.train_images[1], decoding.square(Image.fromarray(GREY), SIZE))
    original = originals(data.train_images)
    assert original is not None
    assert np.array_equal(np.asarray(original(1)), np.asarray(Image.fromarray(GREY).convert("RGB")))
    assert not any("16 bits" in caveat for caveat in data.caveats)


def test_generated_corruptions_read_16_bits(own):
    place, given = own
    given = dataclasses.replace(given, corruption="contrast", corruption_from="generated")
    forest = place / "test/Forest/0000.png"
    forest.write_bytes(encoded(Image.fromarray(GREY)))
    before = load("eurosat", given).test_images[2]
    forest.write_bytes(SAME["png of 16 bits"])
    assert np.array_equal(load("eurosat", given).test_images[2], before)


def test_parquet_files_read_16_bits(tmp_path, local_hub, small):  # noqa: F811
    labels = labels_of(30, 10)
    images = [encoded(picture(label, 0)) for label in labels]
    images[3], images[5] = SAME["png of 16 bits"], SAME["tiff of floats to 1"]
    place = tmp_path / "hub/tanganke/eurosat/data"
    write_parquet(place / "test-00000-of-00001.parquet", images, labels, None)
    data = load("eurosat", small)
    assert np.array_equal(data.test_images[3], decoding.square(Image.fromarray(GREY), SIZE))
    assert np.array_equal(data.test_images[5], decoding.square(Image.fromarray(GREY), SIZE))
    images[3] = REFUSED["signed"][0]
    write_parquet(place / "test-00000-of-00001.parquet", images, labels, None)
    refused("eurosat", small, "1 of 30 images", "row 3; its 32-bit values run from -97 to 111")


def test_a_range_that_is_not_known_is_refused_by_file_and_once_more_from_the_cache(own):
    place, given = own
    (place / "test/Forest/0000.png").write_bytes(REFUSED["16 bits that hold 8"][0])
    for _ in range(2):
        refused("eurosat", given, "1 of 20 images", "Forest/0000.png; its values end at 211", "store it in 8 bits")
    data = load("eurosat", dataclasses.replace(given, skip_corrupt=1))
    assert len(data.test_labels) == 19


def test_floats_of_two_ranges_are_refused(own):
    place, given = own
    for name, kind in (("0000", "tiff of floats to 1"), ("0001", "tiff of floats to 255")):
        (place / f"test/Forest/{name}.png").write_bytes(SAME[kind])
    refused("eurosat", given, "1 images of floats run from 0 to 1", "Forest/0000.png", "1 from 0 to 255", "Forest/0001.png")


def test_results_say_what_is_unusual_also_from_the_cache(own):
    place, given = own
    turned = Image.Exif()
    turned[274] = 6
    smooth = Image.fromarray(picture(1, 0))
    (place / "test/Forest/0000.png").write_bytes(encoded_with(smooth, "JPEG", exif=turned))
    (place / "test/Forest/0001.png").write_bytes(encoded_with(smooth, "GIF", save_all=True, append_images=[smooth.rotate(90)]))
    (place / "test/River/0001.png").write_bytes(encoded(Image.fromarray(GREY.astype(np.uint16) * 16)))
    for _ in range(2):
        said = " ".join(load("eurosat", given).caveats)
        assert "1 images are turned by EXIF (first: " + str(place / "test/Forest/0000.png") in said
        assert "1 images have more than one frame (first: " + str(place / "test/Forest/0001.png") in said
        assert "all 1 images of 16 bits stay below 16,384 of 65,535 (first: " + str(place / "test/River/0001.png") in said
    (place / "test/River/0000.png").write_bytes(SAME["png of 16 bits"])
    assert "16,384" not in " ".join(load("eurosat", given).caveats)  # one is bright: the others may well be dark


def test_squares_of_unusual_images_that_an_older_version_kept_are_not_read(own, monkeypatch):
    place, given = own
    (place / "test/Forest/0000.png").write_bytes(SAME["png of 16 bits"])
    with monkeypatch.context() as older:
        older.setattr(modes, "with_traits", lambda image: (image.convert("RGB"), 0))
        older.setattr(modes, "VERSION", 1)
        assert (load("eurosat", given).test_images[2] == 255).mean() > 0.9
    assert np.array_equal(load("eurosat", given).test_images[2], decoding.square(Image.fromarray(GREY), SIZE))


def test_the_cache_of_published_images_keeps_its_key(tmp_path, local_hub, small):  # noqa: F811
    task = loading.tasks.task("eurosat", "tall", small.tasks_file)
    split = loading.Split(
        where="a file", encoded=loading.Arrays(1, lambda row: GREY, "a"), labels=np.zeros(1, np.int64), classes=None, identity="i",
        fingerprint="f",
    )
    published = dataclasses.replace(small, tasks_file=None)
    assert "modes" not in loading._decoded(task, published, split, "test", SIZE).about
    files = dataclasses.replace(split, encoded=vision.folders.Files([tmp_path / "a.png"]))
    assert "modes" not in loading._decoded(task, published, files, "test", SIZE).about
    own_files = dataclasses.replace(files, exact=False)
    assert loading._decoded(task, published, own_files, "test", SIZE).about["modes"] == modes.VERSION
