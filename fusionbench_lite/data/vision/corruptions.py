"""Seven corruptions of test images with the parameters of CIFAR-10-C (Hendrycks & Dietterich 2019), at native resolution.

The corrupted splits that were published with FusionBench are from this recipe; where they can be had they are to be used,
because noise and angle of blur were drawn without a seed. Results are rounded down to bytes, as in the released code.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fusionbench_lite.data.vision.tasks import CORRUPTIONS
from fusionbench_lite.errors import InputError, did_you_mean

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

SEVERITIES = range(1, 6)

PARAMETERS: dict[str, tuple[Any, ...]] = {
    "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),  # radius, sigma, in pixels
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of the values
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, of values in [0, 1]
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # share of 32 pixels
    "spatter": (  # mean, deviation and blur of the liquid, its threshold, intensity, whether it is mud
        (0.62, 0.1, 0.7, 0.7, 0.5, False), (0.65, 0.1, 0.8, 0.7, 0.5, False), (0.65, 0.3, 1.0, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True), (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the differences from the mean
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
}
"""The parameters of severities 1 to 5."""

NAMES = CORRUPTIONS

WATER = np.array([175, 238, 238]) / 255
MUD = np.array([63, 42, 20]) / 255
PIXELS = 32
"""The side that pixelate leaves, whatever the image's own."""


def corrupt(image: Image.Image | Bytes, name: str, severity: int, generator: np.random.Generator) -> Bytes:
    """Return the corrupted image, uint8 [H, W, 3]; pixelate leaves [32, 32, 3].

    `image` is RGB, uint8 [H, W, 3], or a picture, which is converted to RGB. Equal states of the generator give equal
    bits. Raises InputError: an unknown name, a severity that is not 1 to 5, another kind of image or of generator, OpenCV
    missing (for spatter alone).
    """
    if name not in PARAMETERS:
        raise InputError(f"unknown corruption {name!r}: {did_you_mean(str(name), NAMES)}")
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise InputError(f"severity of {name} must be 1 to 5, got {severity!r}")
    if not isinstance(generator, np.random.Generator):
        raise InputError(f"{name} needs a numpy Generator, got {type(generator).__name__}: pass numpy.random.default_rng(seed)")
    pixels = _pixels(image)
    kinds: dict[str, Callable[[Bytes, Any, np.random.Generator], Bytes]] = {
        "motion_blur": _motion_blur, "impulse_noise": _impulse_noise, "gaussian_noise": _gaussian_noise,
        "pixelate": _pixelate, "spatter": _spatter, "contrast": _contrast, "jpeg_compression": _jpeg_compression,
    }
    return kinds[name](pixels, PARAMETERS[name][int(severity) - 1], generator)


def _pixels(image: Any) -> Bytes:
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"an image to corrupt must be RGB, uint8 [H, W, 3], got {what}: convert it")
    return image


def _bytes(values: Floats) -> Bytes:
    """Return values in [0, 1] as bytes, clipped and rounded down."""
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def _gaussian_noise(image: Bytes, sigma: float, generator: np.random.Generator) -> Bytes:
    return _bytes(image / 255.0 + generator.normal(scale=sigma, size=image.shape))


def _impulse_noise(image: Bytes, amount: float, generator: np.random.Generator) -> Bytes:
    """Set each value of each channel to 0 or 255 with equal probability, `amount` of them."""
    hit = generator.random(image.shape) < amount
    salt = generator.random(image.shape) < 0.5
    return np.where(hit, np.where(salt, np.uint8(255), np.uint8(0)), image)


def _contrast(image: Bytes, factor: float, generator: np.random.Generator) -> Bytes:
    values = image / 255.0
    mean = values.mean((0, 1))
    return _bytes((values - mean) * factor + mean)


def _jpeg_compression(image: Bytes, quality: int, generator: np.random.Generator) -> Bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def _pixelate(image: Bytes, share: float, generator: np.random.Generator) -> Bytes:
    """Resize twice with a box filter: to int(32 · share) a side, then to 32, also where the image is larger."""
    side = int(PIXELS * share)
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    return np.array(small.resize((PIXELS, PIXELS), Image.Resampling.BOX))


def motion_kernel(radius: int, sigma: float, angle: float) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Return the weights of ImageMagick's motion blur and the offsets of their pixels, in rows and in columns.

    2 radius + 1 weights of one half of a Gaussian, exp(-i² / 2σ²), that sum to 1; the i-th lies i pixels from the first
    in the direction of the angle (degrees, clockwise from the right), rounded to whole pixels.
    """
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    turn = math.radians(angle)
    rows, columns = (np.ceil(steps * part - 0.5).astype(np.int64) for part in (math.sin(turn), math.cos(turn)))
    return weights / weights.sum(), rows, columns


def _motion_blur(image: Bytes, parameters: tuple[int, float], generator: np.random.Generator) -> Bytes:
    """Blur along a line at an angle in [-45°, 45°]; beyond its border the image is that of the border."""
    weights, rows, columns = motion_kernel(*parameters, generator.uniform(-45, 45))
    height, width = image.shape[:2]
    total = np.zeros(image.shape)
    for weight, down, right in zip(weights, rows, columns, strict=True):
        own_rows = np.clip(np.arange(height) + down, 0, height - 1)
        own_columns = np.clip(np.arange(width) + right, 0, width - 1)
        total += weight * image[own_rows[:, None], own_columns]
    return (np.rint(total * 257) // 257).astype(np.uint8)  # ImageMagick's numbers have 16 bits, a byte is the upper half


def _spatter(image: Bytes, parameters: tuple[float, float, float, float, float, bool], generator: np.random.Generator) -> Bytes:
    """Cover parts of the image with drops of water, or with mud."""
    from scipy.ndimage import gaussian_filter

    mean, deviation, blur, threshold, intensity, is_mud = parameters
    liquid = gaussian_filter(generator.normal(mean, deviation, image.shape[:2]), blur, mode="nearest")
    values = image / 255.0
    if is_mud:
        cover = gaussian_filter((liquid > threshold).astype(float), intensity, mode="nearest")
        cover[cover < 0.8] = 0
        return _bytes(values * (1 - cover[..., None]) + cover[..., None] * MUD)
    liquid[liquid < threshold] = 0
    depth = _drops((liquid * 255).astype(np.uint8))
    return _bytes(values + intensity * depth[..., None] * WATER)


def _drops(liquid: Bytes) -> Floats:
    """Return the depth of the water in [0, 1], a relief of the distances to the edges of drops [H, W] of 0 to 255."""
    cv2 = _opencv()
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
    relief = cv2.filter2D(distance, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    depth: Floats = liquid * cv2.blur(relief, (3, 3)).astype(np.float64)
    highest = depth.max()
    return depth / highest if highest else depth  # no drop at all: nothing is added


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "the corruption spatter needs OpenCV: pip install 'fusionbench_lite[corruptions]', or use the published splits"
        ) from error
    return cv2
