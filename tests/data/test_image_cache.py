"""The decoded cache: lazy, whole or not believed, shared between processes, and equal to CLIP's own transform."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from fusionbench_lite.data.vision import decoding
from fusionbench_lite.data.vision.cache import Decoded
from fusionbench_lite.data.vision.encoded import Arrays, Files
from fusionbench_lite.data.vision.index import ABSENT, BROKEN, DECODED
from fusionbench_lite.errors import InputError
from tests.conftest import ROOT
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


# ---------------------------------------------------------------- the transform


def images_of_all_kinds():
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 256, (60, 91, 3), dtype=np.uint8)
    smooth = Image.fromarray(rgb).resize((180, 120), Image.Resampling.BICUBIC)
    yield "rgb", smooth
    yield "large", Image.fromarray(rng.integers(0, 256, (501, 376, 3), dtype=np.uint8))
    yield "odd", smooth.resize((225, 301))
    yield "even", smooth.resize((224, 226))
    yield "grey", smooth.convert("L")
    yield "grey with alpha", smooth.convert("LA")
    alpha = smooth.convert("RGBA")
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, (120, 180), dtype=np.uint8)))
    yield "rgba", alpha
    yield "palette", smooth.convert("P", palette=Image.Palette.ADAPTIVE)
    yield "one bit", smooth.convert("1")
    yield "cmyk", smooth.convert("CMYK")
    yield "16 bits", Image.fromarray(rng.integers(0, 65536, (50, 70), dtype=np.uint16))
    yield "tiny", Image.fromarray(rgb[:1, :1])
    yield "two pixels", Image.fromarray(rgb[:1, :2])
    yield "wide", Image.fromarray(np.tile(rgb, (1, 20, 1)))
    yield "high", Image.fromarray(np.tile(rgb, (20, 1, 1))[:, :7])


KINDS = dict(images_of_all_kinds())


@pytest.fixture(scope="module")
def open_clip_transform():
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before torchvision)

    # isort: split
    import open_clip

    return open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture(scope="module")
def processors():
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before torchvision)

    # isort: split
    import transformers

    wanted = [getattr(transformers, name, None) for name in ("CLIPImageProcessorPil", "CLIPImageProcessor")]
    return [kind(do_normalize=False, do_rescale=False) for kind in wanted if kind is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_squares_are_those_of_open_clip(open_clip_transform, kind):
    expected = (open_clip_transform(KINDS[kind].convert("RGB")) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(decoding.square(KINDS[kind]), expected)


# Where the margin is odd, transformers rounds the place of the crop down and torchvision to even: up to one pixel apart.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "odd"])
def test_squares_are_those_of_transformers_to_one_grey_level(processors, kind):
    ours = decoding.square(KINDS[kind]).astype(int)
    for processor in processors:
        # Newer versions lay transparent images on white; the training code dropped the alpha channel.
        given = KINDS[kind].convert("RGB") if kind == "rgba" else KINDS[kind]
        found = np.asarray(processor(given, return_tensors="np")["pixel_values"][0])
        assert np.abs(found.transpose(1, 2, 0).round() - ours).max() <= 1, type(processor).__name__


def test_an_extreme_line_does_not_fill_the_memory():
    line = np.zeros((1, 6000, 3), np.uint8)
    line[0, 2990:3010] = np.random.default_rng(0).integers(0, 256, (20, 3))
    whole = Image.fromarray(line[:, 2900:3100]).resize((200 * 224, 224), Image.Resampling.BICUBIC)
    middle = (200 * 224 - 224) // 2
    expected = np.asarray(whole.crop((middle, 0, middle + 224, 224))).astype(int)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours = decoding.square(Image.fromarray(line)).astype(int)
    assert np.abs(ours - expected).max() <= 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes; the whole line takes 900 MB


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


# ---------------------------------------------------------------- several processes, killed processes, full disks

FILL = """
import sys, time
import numpy as np
from pathlib import Path
from fusionbench_lite.data.vision import decoding
from fusionbench_lite.data.vision.cache import Decoded
from fusionbench_lite.data.vision.encoded import Files

folder, images, wait = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
plain = decoding.opened
decoding.opened = lambda content: (time.sleep(wait), plain(content))[1]
found = Decoded(folder, Files(sorted(images.iterdir())), {}, 32)
print("ready", flush=True)
sys.stdin.readline()
print(np.asarray(found.read(np.arange(len(found)))).sum(), flush=True)
"""


def process(folder: Path, images: Path, wait: float) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FILL), str(folder), str(images), str(wait)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=environment,
    )
    assert running.stdout.readline() == "ready\n"
    return running


def start(running: subprocess.Popen) -> None:
    running.stdin.write("\n")
    running.stdin.flush()


def test_two_processes_fill_the_same_files(tmp_path):
    paths = write_images(tmp_path / "images", 600)
    alone = cache(tmp_path, paths, "alone")
    expected = alone.read(every(alone))
    folder = tmp_path / "shared" / "task-test"
    both = [process(folder, tmp_path / "images", 0.001) for _ in range(2)]
    for running in both:
        start(running)
    sums = [int(running.communicate(timeout=60)[0]) for running in both]
    assert sums == [int(expected.sum())] * 2
    for name in ("pixels", "index"):
        assert (folder / name).read_bytes() == (alone.folder / name).read_bytes()


def test_a_killed_process_loses_only_what_it_had_not_finished(tmp_path, monkeypatch):
    paths = write_images(tmp_path / "images", 200)
    alone = cache(tmp_path, paths, "alone")
    expected = alone.read(every(alone))
    folder = tmp_path / "killed" / "task-test"
    running = process(folder, tmp_path / "images", 0.02)
    start(running)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "index").exists() and sum(map(bool, (folder / "index").read_bytes())) > 150:
            break
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    found = Decoded(folder, Files(paths), {}, SIZE)
    done = int((found.index.states(every(found)) == DECODED).sum())
    assert 0 < done < 200
    opened, count = decoding.opened, []
    monkeypatch.setattr(decoding, "opened", lambda content: count.append(1) or opened(content))
    assert np.array_equal(found.read(every(found)), expected)
    assert len(count) == 200 - done


def test_a_full_disk_is_one_line_and_keeps_what_is_there(tmp_path, paths):
    found = cache(tmp_path, paths)
    found.read(rows(0, 1, 2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * found.row_bytes + 50, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*task-test: .*free some space, or set cache_dir") as caught:
            found.read(every(found))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    done = cache(tmp_path, paths).index.states(every(found)) == DECODED
    assert done[:3].all()
    assert not done[10:].any()
    assert len(cache(tmp_path, paths).read(every(found))) == 30


def test_a_cache_folder_that_cannot_be_made(tmp_path, paths):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cannot (write|read)") as caught:
        cache(tmp_path, paths).read(rows(0))
    assert "\n" not in str(caught.value)


def test_a_read_only_cache_serves_what_it_holds(tmp_path, paths, monkeypatch):
    found = cache(tmp_path, paths)
    good = found.read(np.arange(10))
    plain = Path.open

    def read_only(path, mode="r", *arguments, **others):
        if path.parent == found.folder and set(mode) & set("wa+x"):
            raise OSError(30, "Read-only file system")
        return plain(path, mode, *arguments, **others)

    monkeypatch.setattr(Path, "open", read_only)
    again = cache(tmp_path, paths)
    assert np.array_equal(again.read(np.arange(10)), good)
    with pytest.raises(InputError, match="Read-only file system"):
        again.read(rows(20))


def test_an_error_in_the_middle_leaves_no_thread_writing(tmp_path, paths):
    """A row that fails ends the pass; files are closed only when all threads are done with them."""

    def image(row: int):
        time.sleep(0.005 * (row > 5))
        if row == 5:
            raise InputError("row 5 is not there")
        return picture(row, 0)

    found = Decoded(tmp_path / "x", Arrays(30, image, "rows"), {}, SIZE)
    with pytest.raises(InputError, match="row 5 is not there"):
        found.ensure(every(found))
    after = (tmp_path / "x" / "pixels").read_bytes()
    time.sleep(0.1)
    assert (tmp_path / "x" / "pixels").read_bytes() == after
