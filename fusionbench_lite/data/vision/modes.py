"""Images of every mode in RGB. What has more than 8 bits per channel is scaled by the range that it is known to have, or refused.

Pillow cuts such values at 255: a 16-bit image becomes a white square, an image of floats from 0 to 1 a black one. No image is
stretched by its own extremes, which would make a dark one bright. Images of 8 bits per channel are converted as published code
does, by `convert("RGB")`: alpha is dropped, orientation in EXIF is not applied, the first frame of several is taken. What a reader
of results may have to know of an image is kept as `traits`, bits of a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 2
"""Changes when an image of an unusual mode no longer gives the same square, or has other traits."""
TURNED, FRAMES, DEEP, DIM, UNIT, BYTES = (1 << bit for bit in range(6))
"""Turned by EXIF; of several frames; of 16 bits; of 16 bits and dark; floats from 0 to 1; floats from 0 to 255."""
_BITS_8, _BITS_12, _BITS_16 = 255, 4095, 65535
_DIM_BELOW = 1 << 14
_NEARLY_BLACK = 16
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 258, 262


class CorruptImage(Exception):
    """An image whose bytes were read but cannot be decoded, or whose values have no known range."""


def rgb(image: Image) -> Image:
    """Return an image in RGB, the image itself where it is; raises CorruptImage where its values have no known range."""
    return with_traits(image)[0]


def with_traits(image: Image) -> tuple[Image, int]:
    """Return an image in RGB, and its traits; raises CorruptImage."""
    traits = _turned(image) * TURNED | _has_frames(image) * FRAMES
    if image.mode.startswith("I"):
        image, depth = _integers(image)
        traits |= depth
    elif image.mode == "F":
        image, depth = _floats(image)
        traits |= depth
    if image.mode == "RGB":
        return image, traits
    try:
        return image.convert("RGB"), traits
    except ValueError as error:
        raise CorruptImage(f"its mode {image.mode} has no conversion to RGB") from error


def notes(task: str, traits: NDArray[Any], name: Callable[[int], str]) -> tuple[str, ...]:
    """Return what the traits of a split's images say to a reader of results, as sentences; `name(place)` names one of them.

    Raises InputError where images of floats have two ranges: 0 to 1 and 0 to 255 differ in meaning, not in brightness.
    """
    def first(bit: int) -> tuple[int, str]:
        places = np.flatnonzero(traits & bit)
        return len(places), name(int(places[0])) if len(places) else ""

    (unit, in_unit), (whole, in_bytes) = first(UNIT), first(BYTES)
    if unit and whole:
        raise InputError(
            f"task {task!r}: {unit} images of floats run from 0 to 1 ({in_unit}) and {whole} from 0 to 255 ({in_bytes}): "
            "store all in 8 bits"
        )
    (turned, in_turned), (frames, in_frames), (deep, in_deep), (dim, _) = first(TURNED), first(FRAMES), first(DEEP), first(DIM)
    said = []
    if turned:
        said.append(f"{task}: {turned} images are turned by EXIF (first: {in_turned}), which is not applied, as in published code.")
    if frames:
        said.append(f"{task}: {frames} images have more than one frame (first: {in_frames}); the first frame counts.")
    if deep and dim == deep:
        said.append(
            f"{task}: all {deep} images of 16 bits stay below {_DIM_BELOW:,} of {_BITS_16:,} (first: {in_deep}) and so are dark: "
            "if these are values of 12 or 14 bits, store them in 8 bits."
        )
    return tuple(said)


def _integers(image: Image) -> tuple[Image, int]:
    """Return an image of 16 bits (modes I;16, I;16B, ...) or 32 (I) in 8 bits, and its traits."""
    values = np.asarray(image).astype(np.int32)  # 65,535 * 255 fits
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _BITS_16:
        raise CorruptImage(f"its 32-bit values run from {low} to {high}, a range that is not known: store it in 8 or 16 bits")
    most = _BITS_12 if _tag(image, _BITS_PER_SAMPLE) == 12 else _BITS_16
    if most == _BITS_16 and 0 < high <= _BITS_8:
        raise CorruptImage(
            f"its values end at {high}, as those of 8 bits do, but are of 16 bits, whose white is {_BITS_16}: store it in 8 bits"
        )
    if _tag(image, _PHOTOMETRIC) == 0:  # white is zero, which Pillow applies to images of 8 bits only
        values = most - values
    traits = DEEP | DIM * (most == _BITS_16 and high < _DIM_BELOW) if high else 0
    return _grey((values * _BITS_8 + most // 2) // most), traits


def _floats(image: Image) -> tuple[Image, int]:
    """Return an image of floats in 8 bits, and its traits."""
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise CorruptImage("it has values that are NaN or infinite: correct them")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > _BITS_8 or 1 < high < _NEARLY_BLACK:
        raise CorruptImage(f"its float values run from {low:g} to {high:g}, neither 0 to 1 nor 0 to 255: store it in 8 bits")
    most = 1 if high <= 1 else _BITS_8
    if _tag(image, _PHOTOMETRIC) == 0:
        values = most - values
    grey = np.floor(values * _BITS_8 + 0.5) if most == 1 else np.floor(values)  # of floats to 255 Pillow keeps the whole part
    return _grey(grey), (UNIT if most == 1 else BYTES) if high else 0


def _grey(values: NDArray[Any]) -> Image:
    from PIL import Image

    return Image.fromarray(values.astype(np.uint8))


def _tag(image: Image, number: int) -> Any:
    """Return a tag of a TIFF image, the first of several values; None without it."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value


def _turned(image: Image) -> bool:
    """Say whether EXIF asks to turn an image. Of TIFF images Pillow does so itself."""
    if "exif" not in image.info or image.format == "TIFF":
        return False
    try:
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # EXIF may be malformed in any way, and says nothing then
        return False


def _has_frames(image: Image) -> bool:
    """Say whether an image is one of several frames or pages; previews that phones store behind a JPEG are not meant."""
    return image.format in ("GIF", "TIFF", "WEBP", "PNG", "AVIF") and bool(getattr(image, "is_animated", False))
