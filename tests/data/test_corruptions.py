"""The seven corruptions: their laws, and each against an independent computation or another program's bytes."""

from __future__ import annotations

import io
import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from fusionbench_lite.data.vision import corruptions
from fusionbench_lite.data.vision.corruptions import NAMES, PARAMETERS, corrupt
from tests.support.clip_models import input_refused

SEVERITIES = range(1, 6)


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(height=64, width=80, seed=0):
    """A smooth picture with edges and a little grain: neither flat nor noise."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 70 * np.sin(x / 7 + c) * np.cos(y / (9 + c)) for c in range(3)]
    image = np.stack(waves, -1) + rng(seed).normal(scale=3, size=(height, width, 3))
    image[height // 4 : height // 2, width // 4 : width // 2] = (200, 40, 30)
    return image.clip(0, 255).astype(np.uint8)


def grey(height=400, width=400, value=128):
    return np.full((height, width, 3), value, np.uint8)


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", NAMES)
def test_shape_type_seed_and_input(name, severity):
    if name == "spatter":
        pytest.importorskip("cv2")
    image = picture()
    before = image.copy()
    found = corrupt(image, name, severity, rng(7))
    assert found.dtype == np.uint8
    assert found.shape == ((32, 32, 3) if name == "pixelate" else image.shape)
    assert np.array_equal(image, before)
    assert found.flags.owndata or found.base is not image
    assert not np.shares_memory(found, image)
    assert np.array_equal(found, corrupt(Image.fromarray(image), name, severity, rng(7)))
    assert np.array_equal(found, corrupt(np.asfortranarray(image), name, np.int64(severity), rng(7)))
    other = corrupt(image, name, severity, rng(8))
    assert np.array_equal(found, other) == (name in ("pixelate", "contrast", "jpeg_compression"))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pixelate"])
def test_the_higher_the_severity_the_farther_the_image(name):
    if name == "spatter":
        pytest.importorskip("cv2")
    distances = np.zeros(5)
    for seed in range(8):
        image = picture(96, 96, seed)
        for severity in SEVERITIES:
            found = corrupt(image, name, severity, rng(seed)).astype(float)
            distances[severity - 1] += np.sqrt(np.mean((found - image) ** 2))
    steps = np.diff(distances)
    if name == "spatter":  # severities 1 to 3 are water, 4 and 5 mud, which is darker but covers less
        steps = np.delete(steps, 2)
    if name == "motion_blur":  # what distinguishes 3 and 4 lies beyond six standard deviations
        assert abs(steps[2]) < 0.02 * distances[0]
        steps = np.delete(steps, 2)
    assert distances[0] > 0
    assert (steps > 0).all(), distances


@given(
    name=st.sampled_from([name for name in NAMES if name != "spatter"]), severity=st.integers(1, 5), height=st.integers(1, 9),
    width=st.integers(1, 9), seed=st.integers(0, 99),
)
def test_tiny_images(name, severity, height, width, seed):
    image = rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = corrupt(image, name, severity, rng(seed))
    assert found.shape == ((32, 32, 3) if name == "pixelate" else image.shape)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (33, 1)])
def test_tiny_images_with_spatter(shape, severity):
    pytest.importorskip("cv2")
    image = rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(5):
            assert corrupt(image, "spatter", severity, rng(seed)).shape == image.shape


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_its_mean_and_deviation(severity):
    sigma = PARAMETERS["gaussian_noise"][severity - 1]
    found = corrupt(grey(), "gaussian_noise", severity, rng()) / 255
    noise = found - 128 / 255
    count = noise.size
    assert abs(noise.mean() + 0.5 / 255) < 5 * sigma / math.sqrt(count)  # rounded down, by half a level on average
    assert abs(noise.std() / math.hypot(sigma, 1 / 255 / math.sqrt(12)) - 1) < 5 / math.sqrt(2 * count)
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 5 / math.sqrt(count / 3)
    assert stats.kstest(noise.ravel()[:2000] + rng(1).random(2000) / 255, "norm", (0, sigma)).pvalue > 1e-4


def test_gaussian_noise_is_clipped():
    dark = corrupt(grey(value=0), "gaussian_noise", 5, rng())
    assert abs((dark == 0).mean() - stats.norm.cdf(1 / 255 / 0.1)) < 0.005
    assert corrupt(grey(value=255), "gaussian_noise", 5, rng()).max() == 255


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_hits_its_share_of_the_values(severity):
    amount = PARAMETERS["impulse_noise"][severity - 1]
    found = corrupt(grey(), "impulse_noise", severity, rng())
    for value in (0, 255):
        share, half = (found == value).mean(), amount / 2
        assert abs(share - half) < 5 * math.sqrt(half / found.size)
    assert set(np.unique(found)) == {0, 128, 255}
    hit = found != 128
    together = (hit[..., 0] & hit[..., 1]).mean()  # channels are hit apart
    assert abs(together - amount**2) < 5 * math.sqrt(amount**2 / found[..., 0].size)


# ---------------------------------------------------------------- contrast, JPEG, pixelate


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_is_its_formula(severity):
    image, factor = picture(), PARAMETERS["contrast"][severity - 1]
    values = image.astype(np.longdouble) / 255
    mean = np.stack([values[..., channel].mean() for channel in range(3)])
    want = np.floor(255 * (mean + factor * (values - mean)))
    found = corrupt(image, "contrast", severity, rng())
    assert (found == want).mean() > 0.9999  # a value on the border of two levels may be rounded either way
    assert np.abs(found - want).max() <= 1
    assert np.abs(found.std((0, 1)) / image.std((0, 1)) - factor).max() < 0.02
    assert np.abs(found.mean((0, 1)) + 0.5 - image.mean((0, 1))).max() < 0.2


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_pillows(severity):
    image = picture()
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, format="jpeg", quality=(80, 65, 58, 50, 40)[severity - 1])
        want = np.asarray(Image.open(file).convert("RGB"))
        tables = Image.open(file).quantization
    assert np.array_equal(corrupt(image, "jpeg_compression", severity, rng()), want)
    assert len(tables) == 2


def box(image, side):
    """The mean over the area of each of side x side boxes, with parts of pixels, in float64."""
    def weights(count):
        edges = np.linspace(0, count, side + 1)
        return np.stack([
            np.clip(np.minimum(high, np.arange(count) + 1) - np.maximum(low, np.arange(count)), 0, None) / (high - low)
            for low, high in itertools.pairwise(edges)
        ])

    return np.einsum("ri,ijc,sj->rsc", weights(image.shape[0]), image.astype(float), weights(image.shape[1]))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_the_mean_of_boxes(severity):
    side = (30, 28, 27, 24, 20)[severity - 1]
    image = rng(3).integers(0, 256, (2 * side, 3 * side, 3), dtype=np.uint8)
    found = corrupt(image, "pixelate", severity, rng())
    small = box(image, side)  # whole pixels in each box
    large = Image.fromarray(np.floor(small + 0.5).astype(np.uint8)).resize((32, 32), Image.Resampling.BOX)
    assert np.abs(found.astype(int) - np.asarray(large).astype(int)).max() <= 1
    # Blocks: rows repeat, fewer and fewer remain. (The distance to the image does not grow with each severity: how 32
    # pixels meet the smaller grid counts as much as its size.)
    assert len({tuple(row.ravel()) for row in found}) == len({tuple(column.ravel()) for column in found.swapaxes(0, 1)}) == side


def test_pixelate_leaves_32_pixels_whatever_the_size():
    for shape in ((10, 7), (32, 32), (500, 300)):
        image = np.zeros((*shape, 3), np.uint8)
        image[:, shape[1] // 2 :] = 200
        found = corrupt(image, "pixelate", 5, rng())
        assert found.shape == (32, 32, 3)
        assert found[:, :12].max() == 0
        assert found[:, 20:].min() == 200


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(("image", "name", "severity", "generator", "parts"), [
    (picture(), "gausian_noise", 1, rng(), ["'gausian_noise'", "'gaussian_noise'"]),
    (picture(), "fog", 1, rng(), ["'fog'", "motion_blur"]),
    (picture(), "contrast", 0, rng(), ["contrast", "1 to 5, got 0"]),
    (picture(), "contrast", 6, rng(), ["1 to 5, got 6"]),
    (picture(), "contrast", True, rng(), ["got True"]),
    (picture(), "contrast", 2.5, rng(), ["got 2.5"]),
    (picture()[..., 0], "contrast", 1, rng(), [r"uint8 \(64, 80\)", "convert"]),
    (picture()[..., :1], "contrast", 1, rng(), [r"\(64, 80, 1\)"]),
    (np.zeros((4, 4, 4), np.uint8), "contrast", 1, rng(), [r"\(4, 4, 4\)"]),
    (np.zeros((0, 4, 3), np.uint8), "contrast", 1, rng(), [r"\(0, 4, 3\)"]),
    (picture() / 255, "contrast", 1, rng(), ["float64"]),
    ("cat.png", "contrast", 1, rng(), ["got str"]),
    (picture(), "contrast", 1, np.random.RandomState(0), ["RandomState", "default_rng"]),
    (picture(), "contrast", 1, 3, ["Generator, got int"]),
])
def test_bad_input(image, name, severity, generator, parts):
    with input_refused(*parts):
        corrupt(image, name, severity, generator)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_pictures_of_any_mode_are_converted(mode):
    image = Image.fromarray(picture()).convert(mode)
    found = corrupt(image, "contrast", 1, rng())
    assert np.array_equal(found, corrupt(np.asarray(image.convert("RGB")), "contrast", 1, rng()))


def test_parameters_are_those_of_cifar_10_c():
    assert tuple(PARAMETERS) == NAMES
    assert NAMES == ("motion_blur", "impulse_noise", "gaussian_noise", "pixelate", "spatter", "contrast", "jpeg_compression")
    assert all(len(values) == 5 for values in PARAMETERS.values())
    assert PARAMETERS["gaussian_noise"] == (0.04, 0.06, 0.08, 0.09, 0.10)
    assert PARAMETERS["motion_blur"][-1] == (9, 2.5)
    assert corruptions.PIXELS == 32
