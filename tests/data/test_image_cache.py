"""The decoded cache: lazy, whole or not believed, shared between processes, and equal to CLIP's own transform."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from fusionbench_lite.data.vision import decoding
from fusionbench_lite.data.vision.cache import Decoded
from fusionbench_lite.data.vision.encoded import Files
from fusionbench_lite.data.vision.index import ABSENT, BROKEN, DECODED
from fusionbench_lite.errors import InputError
from tests.support.vision_data import encoded, picture

SIZE = 32


def write_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(picture(number, 0), "JPEG"))
    return paths


@pytest.fixture
def paths(tmp_path):
    return write_images(tmp_path / "images", 30)


def cache(tmp_path: Path, paths: list[Path], name: str = "cache") -> Decoded:
    return Decoded(tmp_path / name / "task-test", Files(paths), {"task": "task"}, SIZE)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def every(found: Decoded) -> np.ndarray:
    return np.arange(len(found))


def no_decoding(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(decoding, "opened", refuse)


# ---------------------------------------------------------------- laziness and contents


def test_rows_are_decoded_when_they_are_first_read(tmp_path, paths, monkeypatch):
    found = cache(tmp_path, paths)
    opened, count = decoding.opened, []
    monkeypatch.setattr(decoding, "opened", lambda content: count.append(1) or opened(content))
    first = found.read(rows(3, 1, 3))
    assert len(count) == 2
    assert first.shape == (3, SIZE, SIZE, 3)
    expected = decoding.square(Image.open(paths[3]), SIZE)
    assert np.array_equal(first[0], expected)
    assert np.array_equal(first[2], expected)
    assert found.index.states(every(found)).sum() == 2 * DECODED
    found.read(rows(1, 3))
    assert len(count) == 2


def test_a_second_pass_decodes_nothing(tmp_path, paths, monkeypatch):
    first = cache(tmp_path, paths).read(np.arange(30))
    no_decoding(monkeypatch)
    assert np.array_equal(cache(tmp_path, paths).read(np.arange(30)), first)


def test_the_file_is_sparse(tmp_path, paths):
    found = cache(tmp_path, write_images(tmp_path / "many", 400))
    found.read(rows(0))
    file = (found.folder / "pixels").stat()
    assert file.st_size == 400 * found.row_bytes
    assert file.st_blocks * 512 < file.st_size / 4


def test_a_cache_can_be_sent_to_another_process(tmp_path, paths):
    found = cache(tmp_path, paths)
    before = found.read(rows(2, 4))
    data = pickle.dumps(Decoded(found.folder, Files(paths), {}, SIZE))
    assert len(data) < 20_000
    assert np.array_equal(pickle.loads(data).read(rows(2, 4)), before)


# ---------------------------------------------------------------- damage


def test_a_damaged_row_is_decoded_again(tmp_path, paths, caplog):
    good = cache(tmp_path, paths).read(np.arange(30))
    found = cache(tmp_path, paths)
    with (found.folder / "pixels").open("r+b") as file:
        file.seek(7 * found.row_bytes + 100)
        file.write(bytes([good[7].reshape(-1)[100] ^ 1]))
    again = found.read(rows(6, 7, 7, 8))
    assert np.array_equal(again, good[[6, 7, 7, 8]])
    assert "1 decoded images are damaged" in caplog.text or "2 decoded images are damaged" in caplog.text
    assert str(paths[7]) in caplog.text
    caplog.clear()
    assert np.array_equal(cache(tmp_path, paths).read(np.arange(30)), good)
    assert not caplog.text


def test_rows_that_changed_places_are_damage(tmp_path, paths):
    good = cache(tmp_path, paths).read(np.arange(30))
    found = cache(tmp_path, paths)
    content = (found.folder / "pixels").read_bytes()
    size, index = found.row_bytes, (found.folder / "index").read_bytes()
    (found.folder / "pixels").write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])
    (found.folder / "index").write_bytes(index[8:16] + index[:8] + index[16:])
    assert np.array_equal(cache(tmp_path, paths).read(np.arange(30)), good)


@pytest.mark.parametrize("damage", ["bit", "short", "empty", "long", "noise", "gone"])
def test_a_damaged_index_is_rebuilt(tmp_path, paths, caplog, damage):
    good = cache(tmp_path, paths).read(np.arange(30))
    index = tmp_path / "cache" / "task-test" / "index"
    content = index.read_bytes()
    flipped = bytearray(content)
    flipped[40] ^= 4
    noise = np.random.default_rng(0).integers(0, 256, len(content), dtype=np.uint8).tobytes()
    changed = {"bit": bytes(flipped), "short": content[:-3], "empty": b"", "long": content + b"x" * 9, "noise": noise}
    if damage == "gone":
        index.unlink()
    else:
        index.write_bytes(changed[damage])
    found = cache(tmp_path, paths)
    assert np.array_equal(found.read(np.arange(30)), good)
    assert ("damaged" in caplog.text) == (damage not in ("gone", "long"))
    assert index.read_bytes()[: len(content)] == content


@pytest.mark.parametrize("left", [0, 1, 10 * SIZE * SIZE * 3 + 5])
def test_pixels_that_were_cut_short(tmp_path, paths, left):
    good = cache(tmp_path, paths).read(np.arange(30))
    pixels = tmp_path / "cache" / "task-test" / "pixels"
    os.truncate(pixels, left)
    assert np.array_equal(cache(tmp_path, paths).read(np.arange(30)), good)
    pixels.unlink()
    assert np.array_equal(cache(tmp_path, paths).read(np.arange(30)), good)


def test_a_folder_that_vanishes_while_it_is_used(tmp_path, paths):
    import shutil

    found = cache(tmp_path, paths)
    good = found.read(np.arange(10))
    shutil.rmtree(found.folder)
    assert np.array_equal(found.read(np.arange(20))[:10], good)


# ---------------------------------------------------------------- images that cannot be decoded


def broken_files() -> dict[str, bytes]:
    whole = encoded(picture(0, 0), "JPEG")
    bomb = b"P6 200000 200000 255\n" + bytes(100)
    return {
        "truncated": whole[: len(whole) // 2], "text": b"not an image", "empty": b"", "header": whole[:30], "bomb": bomb,
        "png": encoded(picture(0, 0))[:60],
    }


@pytest.mark.parametrize("kind", broken_files())
def test_broken_images_are_marked_and_named(tmp_path, paths, caplog, monkeypatch, kind):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    paths[4].write_bytes(broken_files()[kind])
    found = cache(tmp_path, paths)
    found.ensure(every(found))
    assert ImageFile.LOAD_TRUNCATED_IMAGES
    assert found.index.states(rows(3, 4, 5)).tolist() == [DECODED, BROKEN, DECODED]
    assert str(paths[4]) in caplog.text
    with pytest.raises(InputError, match=r"at least 1 of 30 images .* cannot be decoded .*0004.jpg.*skip_corrupt=1"):
        found.read(rows(3, 4))
    no_decoding(monkeypatch)
    assert cache(tmp_path, paths).index.states(rows(4)).tolist() == [BROKEN]


def test_a_file_that_is_gone_is_no_broken_image(tmp_path, paths):
    paths[4].unlink()
    found = cache(tmp_path, paths)
    with pytest.raises(InputError, match=r"cannot read .*0004.jpg"):
        found.ensure(every(found))
    assert found.index.states(rows(4)).tolist() == [ABSENT]
    write_images(paths[0].parent, 30)
    assert len(found.read(every(found))) == 30
