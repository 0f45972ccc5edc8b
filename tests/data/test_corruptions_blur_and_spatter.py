"""Motion blur against ImageMagick's and spatter against computations of its own."""

from __future__ import annotations

import hashlib
import sys
import warnings

import numpy as np
import pytest
from scipy import ndimage, stats

from fusionbench_lite.data.vision import corruptions
from fusionbench_lite.data.vision.corruptions import PARAMETERS, corrupt
from tests.data.test_corruptions import SEVERITIES, grey, picture, rng
from tests.support.clip_models import input_refused

# ---------------------------------------------------------------- motion blur

# SHA-256 (first 16 digits) of what ImageMagick 6.9.11-60 Q16 makes of `ramp()` with -motion-blur RADIUSxSIGMA+ANGLE.
IMAGEMAGICK = {
    (1, -45): "be2d3d67e9fddfe1", (1, -30.5): "7935eee8bf31221a", (1, 0): "5b82979e55b690c1", (1, 12.5): "7279bd21882b3d80",
    (2, -30.5): "86c498145ffaf865", (2, 45): "5f782570b2580ca5", (3, -45): "7934d0f3070bec7f", (3, 12.5): "42a7a73b368ee675",
    (4, -0.25): "bfa30e988f19d3c5", (4, 44.75): "40e7bbc6812d6178", (5, -45): "6b9aa95d4d9e411f", (5, -30.5): "c82ac83efe3e5fcc",
    (5, 12.5): "26a938d472e5729e", (5, 45): "bf301b040dfa3d41",
}


class Angle(np.random.Generator):
    """A generator whose uniform numbers are one number."""

    def __init__(self, angle):
        super().__init__(np.random.PCG64(0))
        self.angle, self.asked = angle, []

    def uniform(self, *bounds):
        self.asked.append(bounds)
        return self.angle


def ramp(height=40, width=52):
    y, x, channel = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((37 * y + 91 * x + 53 * channel + y * x) % 256).astype(np.uint8)


@pytest.mark.parametrize(("severity", "angle"), IMAGEMAGICK)
def test_motion_blur_is_imagemagicks_bit_for_bit(severity, angle):
    generator = Angle(angle)
    found = corrupt(ramp(), "motion_blur", severity, generator)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == IMAGEMAGICK[severity, angle]
    assert generator.asked == [(-45, 45)]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blur_of_a_point_is_one_half_of_a_gaussian(severity):
    radius, sigma = PARAMETERS["motion_blur"][severity - 1]
    image = np.zeros((61, 61, 3), np.uint8)
    image[30, 30] = 255
    found = corrupt(image, "motion_blur", severity, Angle(0))
    steps = np.arange(2 * radius + 1)
    weights = stats.norm.pdf(steps, scale=sigma)
    want = 255 * weights / weights.sum()
    got = found[30, 30 - steps, 0]  # each pixel looks to its right
    assert (np.abs(got - want) <= 1).all()
    assert found[30, 31:].max() == 0
    assert found[:30].max() == found[31:].max() == 0
    tilted = corrupt(image, "motion_blur", severity, Angle(45))
    assert tilted[29, 29, 0] > 0  # and below it
    assert tilted[31, 31, 0] == tilted[29, 31, 0] == 0


def test_motion_blur_keeps_flat_images_and_borders():
    assert (corrupt(grey(20, 30, 255), "motion_blur", 5, rng()) == 255).all()
    assert (corrupt(grey(20, 30, 77), "motion_blur", 1, rng()) == 77).all()
    image = picture()
    found = corrupt(image, "motion_blur", 5, Angle(0))
    assert np.abs(found[:, -1].astype(int) - image[:, -1]).max() <= 1  # beyond the border it goes on


# ---------------------------------------------------------------- spatter


def chamfer(target, steps=((1, 0, 1.0), (1, 1, 1.4), (2, 1, 2.1969))):
    """Distance to the pixels of `target` over steps of a 5 x 5 mask, by relaxation."""
    moves = {(sy * a, sx * b, cost) for y, x, cost in steps for a, b in ((y, x), (x, y)) for sy in (1, -1) for sx in (1, -1)}
    found = np.where(target, 0.0, np.inf)
    while True:
        padded = np.pad(found, 2, constant_values=np.inf)
        shifted = [padded[2 + y : 2 + y + found.shape[0], 2 + x : 2 + x + found.shape[1]] + cost for y, x, cost in moves]
        closer = np.minimum(found, np.min(shifted, axis=0))
        if np.array_equal(closer, found):
            return found
        found = closer


def equalised(image):
    counts = np.bincount(image.ravel(), minlength=256)
    first = np.flatnonzero(counts)[0]
    if counts[first] == image.size:
        return image
    later = np.cumsum(counts) - counts[first]
    table = np.rint(later * (255 / (image.size - counts[first]))).clip(0, 255)
    return table[image]


def drops(liquid, edges):
    """The depth of the water from the liquid and its edges, without OpenCV."""
    distance = np.minimum(chamfer(edges > 0), 20)
    blurred = np.floor(ndimage.uniform_filter(distance, 3, mode="mirror") + 1e-4)
    relief = ndimage.correlate(
        equalised(blurred.astype(np.uint8)), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror"
    ).clip(0, 255)
    depth = liquid * np.rint(ndimage.uniform_filter(relief, 3, mode="mirror"))
    return depth / depth.max()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_against_a_computation_without_opencv(severity, seed):
    cv2 = pytest.importorskip("cv2")
    mean, deviation, blur, threshold, intensity, mud = PARAMETERS["spatter"][severity - 1]
    assert not mud
    image = picture(48, 56, seed)
    liquid = ndimage.gaussian_filter(rng(seed).normal(mean, deviation, (48, 56)), blur, mode="nearest")
    liquid = np.floor(np.where(liquid < threshold, 0, liquid) * 255)
    depth = drops(liquid, cv2.Canny(liquid.astype(np.uint8), 50, 150))
    want = np.floor(255 * (image / 255 + intensity * depth[..., None] * np.array([175, 238, 238]) / 255).clip(0, 1))
    found = corrupt(image, "spatter", severity, rng(seed))
    assert (np.abs(found - want) <= 1).mean() > 0.99  # a rounded distance that differs moves a level of the equalisation
    assert np.abs(found - want).mean() < 0.2
    assert (found != image).any(-1).mean() > 0.01
    assert (found >= image).all()  # water is added


def test_water_far_from_any_edge_is_as_deep_as_at_20_pixels():
    cv2 = pytest.importorskip("cv2")
    liquid = np.zeros((90, 120), np.uint8)
    liquid[40:48, 2:12] = liquid[20:23, 20:28] = 200
    liquid[10:85, 40:115] = 180
    liquid[5, 5] = 1  # no edge: too shallow
    edges = cv2.Canny(liquid, 50, 150)
    assert chamfer(edges > 0)[liquid > 0].max() > 30
    found, want = corruptions._drops(liquid), drops(liquid, edges)
    assert found.shape == (90, 120)
    assert np.abs(found - want).max() < 0.02
    assert found.max() == 1
    assert found[5, 5] > 0


@pytest.mark.parametrize("severity", [4, 5])
def test_mud_against_its_definition(severity):
    mean, deviation, blur, threshold, intensity, mud = PARAMETERS["spatter"][severity - 1]
    assert mud
    image = picture()
    liquid = ndimage.gaussian_filter(rng(2).normal(mean, deviation, (64, 80)), blur, mode="nearest", truncate=4)
    cover = ndimage.gaussian_filter(np.where(liquid > threshold, 1.0, 0.0), intensity, mode="nearest", truncate=4)
    cover = np.where(cover < 0.8, 0, cover)[..., None]
    want = (1 - cover) * image + cover * np.array([63, 42, 20])
    found = corrupt(image, "spatter", severity, rng(2))
    assert (found - want <= 1e-9).all()
    assert (want - found < 1 + 1e-9).all()
    clean = (cover == 0)[..., 0]
    assert 0.01 < 1 - clean.mean() < 0.5
    assert np.abs(found[clean].astype(int) - image[clean]).max() <= 1


def test_spatter_without_a_drop_changes_nothing(monkeypatch):
    pytest.importorskip("cv2")
    monkeypatch.setitem(PARAMETERS, "spatter", ((0.0, 0.01, 0.7, 0.7, 0.5, False),) * 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = corrupt(picture(), "spatter", 1, rng())
    assert np.abs(found.astype(int) - picture()).max() <= 1


def test_opencv_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with input_refused("spatter", "OpenCV", r"fusionbench_lite\[corruptions\]"):
        corrupt(picture(), "spatter", 1, rng())
    corrupt(picture(), "spatter", 4, rng())  # mud needs none
    corrupt(picture(), "motion_blur", 4, rng())
