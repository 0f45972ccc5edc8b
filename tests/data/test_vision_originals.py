"""The original training images of every source: those of the rows of the squares, read one at a time, by threads at once."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from fusionbench_lite.data import TaskData, originals, vision
from fusionbench_lite.data.vision import decoding, folders, hub_files, stock, tasks
from fusionbench_lite.data.vision.cache import Decoded
from fusionbench_lite.data.vision.images import Deferred, Opened
from fusionbench_lite.data.vision.originals import Copied, SplitOriginals
from fusionbench_lite.data.vision.packed import Parquet
from fusionbench_lite.errors import InputError
from tests.data.test_vision_data_layouts import GREY, LAYOUTS, SHAPES, TRAIN, image, sets, sources, surroundings  # noqa: F401  (a fixture)
from tests.support.vision_data import (
    LocalHub,
    encoded,
    labels_of,
    picture,
    small_tasks,
    write_folder,
    write_npz,
    write_parquet,
    write_tar,
)

SIZE = 32
SMALL = {"eurosat": (40, 30), "fer2013": (21, 14), "svhn": (40, 30)}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Sources of small tables on a hub that is a folder."""
    stand_in = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(hub_files, "hub", stand_in)
    monkeypatch.setattr(stock, "hub", stand_in)
    return vision.Sources("tall", tmp_path / "cache", tasks_file=small_tasks(tmp_path / "tasks.yaml", SMALL))


def made(label: int, row: int) -> Image.Image:
    """A picture whose sides tell its row."""
    return Image.fromarray(picture(label, row, 0, (20 + row, 70 - row)))


def same(found: Image.Image, expected: Image.Image) -> bool:
    return found.mode == "RGB" and np.array_equal(np.asarray(found), np.asarray(expected.convert("RGB")))


def squares_are_cut_from_them(data: TaskData) -> None:
    images, given = data.train_images, originals(data.train_images)
    assert given is not None
    for row in range(0, len(images), 3):
        assert np.array_equal(decoding.square(given(row), SIZE), images[row])


def write_eurosat(small: vision.Sources, contents: list[bytes | None], labels: list[int]) -> None:
    place = small.cache.parent / "hub/tanganke/eurosat/data"
    for shard, rows in enumerate(np.array_split(np.arange(len(labels)), 2)):
        file = place / f"train-{shard:05d}-of-00002.parquet"
        write_parquet(file, [contents[row] for row in rows], [labels[row] for row in rows], None, row_group=7)
    write_parquet(place / "test-00000-of-00001.parquet", [encoded(picture(0, 0))] * 30, labels_of(30, 10), None)


@pytest.mark.parametrize("broken", [(), (0, 17, 39)])
def test_rows_of_parquet_files_are_those_of_the_squares(small, broken):
    """Also where images were left out."""
    labels = labels_of(40, 10)
    pictures = [made(label, row) for row, label in enumerate(labels)]
    contents: list[bytes | None] = [encoded(picture) for picture in pictures]
    for row in broken:
        contents[row] = contents[row][:90] if row else None
    write_eurosat(small, contents, labels)
    data = vision.load("eurosat", dataclasses.replace(small, skip_corrupt=len(broken)), None, SIZE)
    kept = [row for row in range(40) if row not in broken]
    given = originals(data.train_images)
    assert np.asarray(data.train_labels).tolist() == [labels[row] for row in kept]
    assert [given(row).size for row in range(len(kept))] == [pictures[row].size for row in kept]
    assert all(same(given(place), pictures[row]) for place, row in enumerate(kept))
    squares_are_cut_from_them(data)


def test_rows_of_tar_files(small):
    labels = labels_of(21, 7)
    pictures = [made(label, row).convert("L") for row, label in enumerate(labels)]
    for split, count in (("train", 21), ("test", 14)):
        file = small.cache.parent / f"hub/clip-benchmark/wds_fer2013/{split}/0.tar"
        write_tar(file, [encoded(picture) for picture in pictures[:count]], labels_of(count, 7), "png")
    data = vision.load("fer2013", small, None, SIZE)
    assert all(same(originals(data.train_images)(row), picture) for row, picture in enumerate(pictures))
    squares_are_cut_from_them(data)


def test_rows_of_class_folders(tmp_path):
    names = folders.class_names(tasks.task("svhn", "tall"))[0]
    write_folder(tmp_path / "data", "svhn", names, {"train": 3, "test": 1})
    data = vision.load("svhn", vision.Sources("tall", tmp_path / "cache", tmp_path / "data"), None, SIZE)
    expected = [picture(label, number + 1000) for label in range(10) for number in range(3)]
    assert all(same(originals(data.train_images)(row), Image.fromarray(array)) for row, array in enumerate(expected))
    squares_are_cut_from_them(data)


@pytest.mark.parametrize("size", [(24, 20), (SIZE, SIZE)])
def test_images_of_an_archive_are_their_own_originals(tmp_path, size):
    names = folders.class_names(tasks.task("svhn", "tall"))[0]
    write_npz(tmp_path / "data", "svhn", names, {"train": 12, "test": 10}, size)
    data = vision.load("svhn", vision.Sources("tall", tmp_path / "cache", tmp_path / "data"), None, SIZE)
    stored = np.load(tmp_path / "data/svhn.npz")["train_images"]
    assert stored.shape[1:3] == size
    assert all(same(originals(data.train_images)(row), Image.fromarray(array)) for row, array in enumerate(stored))
    squares_are_cut_from_them(data)


@pytest.mark.parametrize("task", LAYOUTS)
def test_rows_of_published_archives(tmp_path, task):
    classes = vision.task(task, "tall").classes
    LAYOUTS[task](tmp_path / "data")
    data = vision.load(task, sources(tmp_path, task, classes), None, SIZE)
    size, given = SHAPES.get(task, (24, 20)), originals(data.train_images)
    pictures = {(c, image(c, row, TRAIN, size).tobytes()) for row, c in enumerate(sets(classes)[0][1])}
    if task in GREY:
        pictures = {
            (c, np.asarray(Image.fromarray(image(c, row, TRAIN, size)[..., 0]).convert("RGB")).tobytes())
            for row, c in enumerate(sets(classes)[0][1])
        }
    found = {(int(c), np.asarray(given(row)).tobytes()) for row, c in enumerate(np.asarray(data.train_labels))}
    assert found == pictures
    squares_are_cut_from_them(data)


def test_a_split_is_opened_once_whatever_thread_asks_first():
    opened, barrier = [], threading.Barrier(4)

    def open_() -> Opened:
        opened.append(threading.get_ident())
        time.sleep(0.05)
        return Opened(None, np.arange(3), np.arange(3))  # type: ignore[arg-type]

    deferred = Deferred(lambda: None, SIZE, open_)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: (barrier.wait(20), deferred.opened)[1], range(4)))
    assert len(opened) == 1
    assert all(one is found[0] for one in found)
    assert len(deferred) == 3


# ---------------------------------------------------------------- copies of parquet files


def split_of(tmp_path, name: str = "cache") -> tuple[SplitOriginals, Parquet, list[bytes | None]]:
    """The originals of 30 rows in one parquet file, of which row 11 has no bytes."""
    file = tmp_path / "a.parquet"
    contents = [encoded(made(row % 5, row)) if row != 11 else None for row in range(30)]
    if not file.exists():
        write_parquet(file, contents, [row % 5 for row in range(30)], None, row_group=7)
    images = Parquet([file], "image")
    decoded = Decoded(tmp_path / name / "t", images, {"task": "t", "where": "a file"}, SIZE)
    deferred = Deferred(lambda: 30, SIZE, lambda: Opened(decoded, np.arange(30), np.arange(30) % 5))
    return SplitOriginals(deferred), images, contents


def test_a_copy_is_made_once_and_read_by_threads_at_once(tmp_path, monkeypatch):
    asked, looked, plain, look = [], [], Parquet.contents, Copied._read_index
    monkeypatch.setattr(Parquet, "contents", lambda self, rows: (asked.append(len(rows)), plain(self, rows))[1])
    monkeypatch.setattr(Copied, "_read_index", lambda self: (looked.append(1), look(self))[1])
    given, _, _ = split_of(tmp_path)
    rows = [row for row in range(30) if row != 11] * 4
    with ThreadPoolExecutor(8) as pool:
        barrier = threading.Barrier(8)

        def read(place: int) -> bool:
            if place < 8:
                barrier.wait(20)  # all of them ask before there is a copy
            return same(given(rows[place]), made(rows[place] % 5, rows[place]))

        assert all(pool.map(read, range(len(rows))))
    assert asked == [30]
    assert len(looked) == 2  # before the copy and after it, by the thread that was first
    again, _, _ = split_of(tmp_path)
    again.copy_ahead()
    assert same(again(29), made(4, 29))
    assert asked == [30]


@pytest.mark.parametrize("damage", ["no index", "short index", "short bytes", "other index"])
def test_a_copy_that_is_not_whole_is_made_anew(tmp_path, damage):
    given, _, contents = split_of(tmp_path)
    given.copy_ahead()
    index, copied = (tmp_path / "cache/t" / name for name in ("encoded.index", "encoded"))
    assert copied.read_bytes() == b"".join(content or b"" for content in contents)
    whole = index.read_bytes()
    if damage == "no index":
        index.unlink()
    elif damage == "short bytes":
        copied.write_bytes(copied.read_bytes()[:-5])
    else:
        index.write_bytes(whole[:-24] if damage == "short index" else whole[24:] + whole[:24])
    again, _, _ = split_of(tmp_path)
    assert all(same(again(row), made(row % 5, row)) for row in (0, 10, 12, 29))
    assert index.read_bytes() == whole
    assert copied.read_bytes() == b"".join(content or b"" for content in contents)


def test_a_damaged_image_of_a_copy_is_read_from_its_source(tmp_path, caplog):
    given, images, contents = split_of(tmp_path)
    given.copy_ahead()
    copied = tmp_path / "cache/t/encoded"
    content = bytearray(copied.read_bytes())
    at = content.index(contents[12]) + len(contents[12]) // 2
    content[at] ^= 1
    copied.write_bytes(content)
    assert same(given(12), made(2, 12))
    assert f"damaged at {images.name(12)}" in caplog.text
    caplog.clear()
    assert same(given(13), made(3, 13))
    assert not caplog.text


def test_a_copy_that_was_broken_off_leaves_nothing_that_counts(tmp_path, monkeypatch):
    given, images, contents = split_of(tmp_path)
    plain = Parquet.contents

    def failing(self, rows):
        yield from list(plain(self, rows))[:9]
        raise InputError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Parquet, "contents", failing)
        with pytest.raises(InputError, match="the disk is gone"):
            given(3)
    assert not list((tmp_path / "cache/t").glob("*encoded*"))
    assert same(given(3), made(3, 3))
    assert Copied(given._deferred.opened.decoded, images).read(4) == contents[4]


def test_a_row_without_bytes_is_a_corrupt_image_and_named(tmp_path, caplog):
    given, _, _ = split_of(tmp_path)
    with pytest.raises(decoding.CorruptImage, match="no bytes"):
        given(11)
    assert "a.parquet row 11 cannot be decoded: there are no bytes" in caplog.text
    said = str(given.refusal(np.array([11])))
    assert said.startswith("task 't': at least 1 of 30 images of a file cannot be decoded (a.parquet row 11; there are no bytes)")
    assert said.endswith("or set data.skip_corrupt=1 to leave them out")


def test_a_copy_that_cannot_be_written_is_one_line(tmp_path):
    given, _, _ = split_of(tmp_path)
    (tmp_path / "cache/t/encoded").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot write .*/t/encoded: Is a directory") as error:
        given.copy_ahead()
    assert "\n" not in str(error.value)


def test_copying_is_reported(tmp_path):
    given, images, _ = split_of(tmp_path)
    seen: list[tuple[str, int, int]] = []
    Copied(given._deferred.opened.decoded, images, lambda *status: seen.append(status))
    assert seen == [("copying t", row, 30) for row in range(1, 31)]
