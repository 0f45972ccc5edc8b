"""Random resized crops against torchvision's, with PIL."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before torchvision)

# isort: split

from PIL import Image, ImageFile
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from fusionbench_lite.data.vision import decoding
from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning.images import Draws, boxes, crop, cropped, cropped_originals
from fusionbench_lite.finetuning.step_images import Pool, StepImages
from tests.support.finetuning_job import task_data

SCALE = (0.9, 1.0)


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Noise, and noise of larger grains, which smooth filters treat differently."""
    stream = np.random.default_rng(height)
    fine = stream.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    coarse = np.asarray([np.array(Image.fromarray(p).resize((9, 9)).resize((width, height), Image.BICUBIC)) for p in fine])
    return np.concatenate([fine, coarse])


def reference(image: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    return np.asarray(resized_crop(Image.fromarray(image), *box, [size, size], InterpolationMode.BICUBIC))


@pytest.mark.parametrize("size", [32, 224])
def test_crops_are_pils_to_one_grey_level(size):
    images = pictures(6, size, size)
    sizes = np.full((len(images), 2), size)
    places = boxes(sizes, (0.3, 1.0), 0, "test")
    places[0], places[1] = (0, 0, size, size), (0, 3, size, size - 3)
    found = cropped(torch.from_numpy(images), places).numpy()
    expected = np.stack([reference(image, tuple(place), size) for image, place in zip(images, places.tolist(), strict=True)])
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    assert np.array_equal(found[0], images[0])  # the whole image is left alone
    assert not np.array_equal(found[2], images[2])


def kinds() -> dict[str, Image.Image]:
    """Images of 90 x 131 of every mode, smooth with noise, as files of several formats give them."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((131, 90), Image.BICUBIC)
    alpha = smooth.convert("RGBA")
    alpha.putalpha(smooth.convert("L").point(lambda value: 255 - value))
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn, for viewers
    files = {
        "rgb": (smooth, "PNG", {}), "grey": (smooth.convert("L"), "PNG", {}), "grey with alpha": (alpha.convert("LA"), "PNG", {}),
        "palette": (smooth.quantize(40), "PNG", {}), "transparent palette": (smooth.quantize(40), "PNG", {"transparency": 3}),
        "rgba": (alpha, "PNG", {}), "one bit": (smooth.convert("1"), "PNG", {}), "cmyk": (smooth.convert("CMYK"), "JPEG", {}),
        "turned": (smooth, "JPEG", {"exif": turned}),
    }
    found = {}
    for name, (image, form, options) in files.items():
        target = io.BytesIO()
        image.save(target, form, **options)
        found[name] = decoding.opened(target.getvalue())
    return found


MODES = {
    "rgb": "RGB", "grey": "L", "grey with alpha": "LA", "palette": "P", "transparent palette": "P", "rgba": "RGBA", "one bit": "1",
    "cmyk": "CMYK", "turned": "RGB",
}


@pytest.mark.parametrize("kind", MODES)
def test_a_crop_of_an_original_is_torchvisions(kind):
    """Of the image in RGB, as the data sets' readers hand it to the published code, to the bit."""
    image = kinds()[kind]
    assert image.mode == MODES[kind]
    plain = image.convert("RGB")
    for box in ((0, 0, 90, 131), (3, 5, 80, 101), (40, 60, 9, 12), (0, 0, 90, 90)):
        for size in (24, 224):
            found = crop(image, box, size)
            assert np.array_equal(found, np.asarray(resized_crop(plain, *box, [size, size], InterpolationMode.BICUBIC)))
            assert found.dtype == np.uint8
    if kind in ("rgb", "grey"):  # where open_clip's order, RGB last, is the same
        late = resized_crop(image, 3, 5, 80, 101, [24, 24], InterpolationMode.BICUBIC).convert("RGB")
        assert np.array_equal(crop(image, (3, 5, 80, 101), 24), np.asarray(late))


@pytest.mark.parametrize("kind", MODES)
def test_an_original_is_read_as_evaluation_reads_it(kind):
    """The whole of a square image is evaluation's square: alpha is dropped, and a note of a turn is not followed."""
    image = kinds()[kind]
    assert image.size == (131, 90)
    part = image.crop((20, 0, 110, 90))
    assert np.array_equal(crop(image, (0, 20, 90, 90), 48), decoding.square(part, 48))


def test_batches_of_originals_are_their_crops_whatever_the_number_of_threads():
    pictures = list(kinds().values())
    rows = np.arange(40) % len(pictures)
    sizes = np.array([(pictures[row].height, pictures[row].width) for row in rows])
    places = boxes(sizes, SCALE, 1, "dtd")
    expected = np.stack([crop(pictures[row], place, 24) for row, place in zip(rows, places.tolist(), strict=True)])
    for threads in (1, 2, 7, None):
        found, sound = cropped_originals(lambda row: pictures[row], rows, SCALE, 24, 1, "dtd", threads=threads)
        assert np.array_equal(found, expected)
        assert sound.all()


def test_no_more_originals_are_open_than_there_are_threads():
    lock, alive, most = threading.Lock(), set(), []

    class Counted:
        """An image that says when it is no longer held."""

        def __init__(self, row):
            self.image, self.row = Image.new("RGB", (30, 20)), row
            with lock:
                alive.add(row)
                most.append(len(alive))

        def __getattr__(self, name):
            return getattr(self.image, name)

        def __del__(self):
            alive.discard(self.row)

    cropped_originals(Counted, np.arange(60), SCALE, 24, 1, threads=3)
    assert len(most) == 60
    assert max(most) <= 3 + 1  # one may be let go a moment after the next was opened


def test_originals_that_cannot_be_decoded_are_told_apart():
    def original(row):
        if row in (3, 8):
            raise decoding.CorruptImage("no image")
        return Image.fromarray(pictures(1, 20 + row, 31)[0])

    found, sound = cropped_originals(original, np.array([2, 3, 5, 8, 8]), SCALE, 24, 1)
    assert sound.tolist() == [True, False, True, False, False]
    whole, _ = cropped_originals(lambda row: original(2 if row in (3, 8) else row), np.array([2, 3, 5, 8, 8]), SCALE, 24, 1)
    assert np.array_equal(found[sound], whole[sound])

    def gone(row):
        raise InputError(f"cannot read {row}.jpg")

    with pytest.raises(InputError, match="cannot read 5.jpg"):
        cropped_originals(lambda row: gone(row) if row == 5 else original(row), np.array([2, 5]), SCALE, 24, 1)


def test_truncated_files_are_refused_whatever_was_set_elsewhere(monkeypatch):
    target = io.BytesIO()
    Image.fromarray(pictures(1, 60, 60)[0]).save(target, "JPEG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    half = target.getvalue()[: len(target.getvalue()) // 2]
    _, sound = cropped_originals(lambda row: decoding.opened(half), np.arange(4), SCALE, 24, 1, threads=2)
    assert not sound.any()
    first, second = decoding.whole_images_only(), decoding.whole_images_only()
    with first:
        second.__enter__()
    assert not ImageFile.LOAD_TRUNCATED_IMAGES  # the block of another thread goes on
    second.__exit__(None, None, None)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@given(
    st.integers(1, 4000), st.integers(1, 4000),
    st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(lambda pair: (min(pair), max(pair))), st.integers(0, 99),
)
def test_boxes_keep_the_bounds_of_area_and_ratio(height, width, scale, seed):
    """Up to the rounding of the sides, or the box is the largest one in the middle, as torchvision's is."""
    sizes = np.tile([height, width], (8, 1))
    found = boxes(sizes, scale, seed)
    middle = RandomResizedCrop.get_params(torch.empty(3, height, width), [9.0, 9.0], [3 / 4, 4 / 3])  # no box has 9 times the area
    for top, left, tall, wide in found.tolist():
        assert 0 <= top <= height - tall
        assert 0 <= left <= width - wide
        if (top, left, tall, wide) == tuple(middle):
            continue
        area = height * width
        assert (tall - 0.5) * (wide - 0.5) <= scale[1] * area * (1 + 1e-9)
        assert (tall + 0.5) * (wide + 0.5) >= scale[0] * area * (1 - 1e-9)
        assert (wide - 0.5) / (tall + 0.5) <= 4 / 3 + 1e-9
        assert (wide + 0.5) / (tall - 0.5) >= 3 / 4 - 1e-9
    each = [Draws(8, scale, seed).boxes(sizes[:1], slice(place, place + 1))[0] for place in range(8)]
    assert np.array_equal(each, found)


@pytest.mark.parametrize(("height", "width"), [(60, 400), (400, 60), (1, 50), (2999, 3), (7, 1)])
def test_the_box_of_a_long_image_is_torchvisions(height, width):
    """No box of 90 % has an allowed ratio."""
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), list(SCALE), [3 / 4, 4 / 3])
    assert boxes(np.array([(height, width)]), SCALE, 0).tolist() == [list(theirs)]


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(224, 224, SCALE), (224, 224, (0.1, 0.3)), (300, 200, SCALE), (60, 400, SCALE), (400, 60, SCALE)],
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale):
    count = 3000
    own = boxes(np.tile([height, width], (count, 1)), scale, 0, height, width)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)])
    assert (own[:, :2] >= 0).all()
    assert (own[:, 0] + own[:, 2] <= height).all()
    assert (own[:, 1] + own[:, 3] <= width).all()
    sides = [lambda b, side=side: b[:, side] for side in range(4)]
    for of in (*sides, lambda b: b[:, 2] * b[:, 3], lambda b: np.log(b[:, 2] / b[:, 3])):
        first, second = of(own).astype(float), of(theirs).astype(float)
        spread = max(first.std(), second.std())
        assert abs(first.mean() - second.mean()) <= 5 * spread * (2 / count) ** 0.5 + 1e-9
        assert abs(first.std() - second.std()) <= 0.1 * spread + 1e-9
    whole = [(b[:, 2:] == b[0, 2:]).all(1).mean() for b in (own, theirs)]
    if min(height, width) == 60:  # no box of 90 % has an allowed ratio: the largest one in the middle is taken
        assert whole == [1.0, 1.0]
        assert np.array_equal(own[0], theirs[0])


def test_boxes_are_keyed_by_seed_task_and_step():
    sizes = np.tile([64, 64], (50, 1))
    first = boxes(sizes, SCALE, 0, "dtd", "crop", 3)
    assert np.array_equal(first, boxes(sizes, SCALE, 0, "dtd", "crop", 3))
    for other in ((1, "dtd", "crop", 3), (0, "svhn", "crop", 3), (0, "dtd", "crop", 4)):
        assert not np.array_equal(first, boxes(sizes, SCALE, *other))


def test_originals_take_the_place_of_decoded_images():
    """Of images that were square and of the model's size, both give the same crops to one grey level."""
    data, rows, device = task_data("dtd"), np.arange(20, 90), torch.device("cpu")

    def images(original, crop=SCALE):
        images = StepImages({"dtd": Pool(data, rows, 16, original)}, crop, 5, lambda x: x, device).images(7)
        return images["dtd"].numpy().astype(int)

    decoded, direct = images(None), images(lambda row: Image.fromarray(data.train_images[row]))
    assert np.abs(decoded - direct).max() <= 1
    assert not np.array_equal(images(None, None), decoded)
    assert np.array_equal(images(None, None), images(lambda row: pytest.fail("not needed"), None))


def test_an_image_is_cropped_anew_in_every_epoch():
    pool = {"dtd": Pool(task_data("dtd"), np.array([20]), 1)}
    images = [
        StepImages(pool, SCALE, seed, lambda x: x, torch.device("cpu")).images(step)["dtd"] for seed in (0, 1) for step in range(10)
    ]
    assert len({image.numpy().tobytes() for image in images}) > 12  # a few are whole: no box of the size was found
