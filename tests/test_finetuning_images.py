"""Random resized crops against torchvision's, with PIL."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fusionbench_lite.torchvision_ops  # noqa: F401  (before torchvision)

# isort: split

from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from fusionbench_lite.finetuning.batches import Batches, Pool
from fusionbench_lite.finetuning.images import boxes, cropped, cropped_originals
from tests.finetuning_job import task_data

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


def test_originals_are_cropped_by_pil_itself():
    stream = np.random.default_rng(0)
    originals = [Image.fromarray(stream.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 31), (224, 300), (90, 500))]
    originals.append(Image.fromarray(stream.integers(0, 256, (50, 60), dtype=np.uint8)))  # grey
    sizes = np.array([(image.height, image.width) for image in originals])
    places = boxes(sizes, SCALE, 1, "dtd")
    found = cropped_originals(originals, SCALE, 24, 1, "dtd")
    for image, place, out in zip(originals, places.tolist(), found, strict=True):
        assert np.array_equal(out, np.asarray(resized_crop(image, *place, [24, 24], InterpolationMode.BICUBIC).convert("RGB")))


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
        return Batches({"dtd": Pool(data, rows, 16, original)}, crop, 5, lambda x: x, device).images(7)["dtd"].numpy().astype(int)

    decoded, direct = images(None), images(lambda row: Image.fromarray(data.train_images[row]))
    assert np.abs(decoded - direct).max() <= 1
    assert not np.array_equal(images(None, None), decoded)
    assert np.array_equal(images(None, None), images(lambda row: pytest.fail("not needed"), None))


def test_an_image_is_cropped_anew_in_every_epoch():
    pool = {"dtd": Pool(task_data("dtd"), np.array([20]), 1)}
    images = [
        Batches(pool, SCALE, seed, lambda x: x, torch.device("cpu")).images(step)["dtd"] for seed in (0, 1) for step in range(10)
    ]
    assert len({image.numpy().tobytes() for image in images}) > 12  # a few are whole: no box of the size was found
