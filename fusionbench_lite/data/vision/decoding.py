"""From an encoded image to the uint8 square that CLIP's evaluation transform makes of it, before normalisation.

The order is: RGB, shorter side resized to `size` (bicubic, antialiased, Pillow), centre crop. It is that of the training
code for every mode: torchvision's and this project's readers convert to RGB when they load, and so do the processors of the
hub's models. (open_clip's own transform, given a palette or RGBA image, would resize first and convert after.) Alpha is dropped,
as there; newer versions of transformers lay such images on white. What has more than 8 bits is scaled first (modes.py), where that
code would cut it at 255. Where the margin that is cropped is odd, the crop's place is
rounded as in torchvision and open_clip, to even; transformers rounds down, so that its square may be one pixel aside.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.signatures import LENGTH, image_format, other_kind
from fusionbench_lite.data.vision.modes import CorruptImage as CorruptImage
from fusionbench_lite.data.vision.modes import rgb as rgb

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 224
VERSION = 1
"""Changes when the same image no longer gives the same square."""
MOST_PIXELS = 178_956_970
"""Images with more pixels are taken for decompression bombs: Pillow's own limit."""
_MOST_RESIZED = 50_000_000
_MOST_THREADS = 16
_CODECS = ("libjpeg_turbo", "jpg", "zlib", "zlib_ng", "jpg_2000", "libtiff", "webp", "avif")


def opened(content: bytes | None) -> Image:
    """Return the decoded image of a file's bytes; raises CorruptImage where they are not a whole image."""
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise CorruptImage("there are no bytes")
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MOST_PIXELS:
            raise CorruptImage(f"{image.width} x {image.height} pixels are taken for a decompression bomb")
        image.load()
    except (MemoryError, CorruptImage):
        raise
    except UnidentifiedImageError as error:  # its own text is the address of a buffer
        raise CorruptImage(_unidentified(content[:LENGTH])) from error
    except Exception as error:  # decoders raise whatever a malformed header makes them stumble over
        raise CorruptImage(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return image


def _unidentified(head: bytes) -> str:
    kind = image_format(head)
    if kind is not None:
        return f"it begins like {kind}, and Pillow cannot read it here: convert it to PNG or JPEG"
    other = other_kind(head)
    return f"it is {other}" if other else "it begins like no image format that is known"


def as_image(image: Image | NDArray[np.uint8]) -> Image:
    """Return an image of an array [H, W, 3] or [H, W], or the image that it already is."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image


def square(image: Image, size: int = SIZE) -> NDArray[np.uint8]:
    """Return the centre of an image, uint8 [size, size, 3], as CLIP's evaluation transform cuts it."""
    from PIL.Image import Resampling

    image = rgb(image)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new = int(size * long / short)
    new_width, new_height = (size, new) if width <= height else (new, size)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    if new_width * new_height > _MOST_RESIZED:
        # Only the part that the crop keeps: a line of 1 x 5,000 pixels would become one of 224 x 1,120,000.
        box = (
            left * width / new_width, top * height / new_height,
            (left + size) * width / new_width, (top + size) * height / new_height,
        )
        return np.asarray(image.resize((size, size), Resampling.BICUBIC, box))
    resized = image.resize((new_width, new_height), Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


class _Blocks:
    """How many blocks refuse truncated files now, in all threads, and what was set before the first of them."""

    lock, count, before = threading.Lock(), 0, False


@contextlib.contextmanager
def whole_images_only() -> Iterator[None]:
    """Refuse truncated files for the length of the block, whatever was set elsewhere; blocks of threads may overlap."""
    from PIL import ImageFile

    with _Blocks.lock:
        if not _Blocks.count:
            _Blocks.before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        _Blocks.count += 1
    try:
        yield
    finally:
        with _Blocks.lock:
            _Blocks.count -= 1
            if not _Blocks.count:
                ImageFile.LOAD_TRUNCATED_IMAGES = _Blocks.before


def threads() -> int:
    """Return how many threads decode at once: Pillow lets other threads run while it decodes and resizes."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_THREADS)


@functools.cache
def version() -> dict[str, Any]:
    """Return what decides a decoded square besides the file: this code, Pillow and its codecs."""
    import PIL
    from PIL import features

    supported = {*features.modules, *features.codecs, *features.features}
    codecs = {codec: features.version(codec) for codec in _CODECS if codec in supported}
    return {"preprocessing": VERSION, "pillow": PIL.__version__, "codecs": codecs}
