"""Random resized crops of training images, drawn by a key: of originals by PIL, of images of one size for a batch at once.

They are those of torchvision's RandomResizedCrop with PIL's bicubic filter, in open_clip's train transform: a box of a
random part of the area and a random ratio of its sides (3/4 to 4/3) is cut out and resized; nothing is flipped or coloured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionbench_lite.base.randomness import generator
from fusionbench_lite.data.vision import decoding

if TYPE_CHECKING:
    from PIL.Image import Image

RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
"""Boxes that are tried before the largest one in the middle is taken, as torchvision does."""


class Draws:
    """The random numbers of the boxes of `count` images; where a box lies follows from them and from its image's sides.

    `scale`: the smallest and the largest part of the area. So the boxes of images whose sides are not known yet are drawn.
    """

    def __init__(self, count: int, scale: tuple[float, float], *key: object) -> None:
        stream = generator(*key)
        self.part = stream.uniform(*scale, size=(count, ATTEMPTS))
        self.ratio = np.exp(stream.uniform(math.log(RATIO[0]), math.log(RATIO[1]), size=(count, ATTEMPTS)))
        self.corner = stream.random((count, 2))

    def boxes(self, sizes: NDArray[np.int64], images: slice = slice(None)) -> NDArray[np.int64]:
        """Return the boxes, int64 [B, 4] of top, left, height and width, of images with heights and widths [B, 2]."""
        part, ratio, corner = self.part[images], self.ratio[images], self.corner[images]
        height, width = sizes[:, :1].astype(float), sizes[:, 1:].astype(float)
        area = height * width * part
        wide, tall = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (wide >= 1) & (wide <= width) & (tall >= 1) & (tall <= height)
        chosen = np.arange(len(sizes)), fits.argmax(1)
        tall, wide = tall[chosen], wide[chosen]
        top, left = np.floor(corner[:, 0] * (sizes[:, 0] - tall + 1)), np.floor(corner[:, 1] * (sizes[:, 1] - wide + 1))
        drawn = np.stack([top, left, tall, wide], 1).astype(np.int64)
        for row in np.flatnonzero(~fits.any(1)):
            drawn[row] = _middle(int(sizes[row, 0]), int(sizes[row, 1]))
        return drawn


def boxes(sizes: NDArray[np.int64], scale: tuple[float, float], *key: object) -> NDArray[np.int64]:
    """Return a box for each image, int64 [B, 4] of top, left, height and width, from images' heights and widths [B, 2]."""
    return Draws(len(sizes), scale, *key).boxes(sizes)


def _middle(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the largest box in the middle whose ratio is allowed."""
    tall, wide = height, width
    if width / height < RATIO[0]:
        tall = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        wide = round(height * RATIO[1])
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def cropped(images: Tensor, places: NDArray[np.int64]) -> Tensor:
    """Return each image's box resized to the size of the image, uint8 [B, H, W, 3] from uint8 [B, H, W, 3].

    The bicubic filter is one matrix of weights per image and side, so a batch takes two products on the images' device.
    Rows come first and are rounded to bytes, as in PIL; values are within one grey level of PIL's.
    """
    height, width = images.shape[1:3]
    place = torch.from_numpy(places).to(images.device)
    top, left, tall, wide = place.unbind(1)
    pixels = images.permute(0, 3, 1, 2).float()
    pixels = _bytes(torch.matmul(pixels, _weights(left, wide, width).transpose(1, 2)[:, None]))
    pixels = _bytes(torch.matmul(_weights(top, tall, height)[:, None], pixels))
    return pixels.to(torch.uint8).permute(0, 2, 3, 1)


def _bytes(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def _weights(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return float32 [B, size, size]: how much each pixel of a side counts in each of the `size` pixels of the resized box.

    The filter is Keys' cubic with a = -1/2, widened where the box is larger than the result; pixels outside the box do
    not count, and weights sum to 1.
    """
    pixel = torch.arange(size, device=start.device, dtype=torch.float64)
    first, extent = start.double()[:, None, None], length.double()[:, None, None]
    factor = extent / size
    centre = (pixel[None, :, None] + 0.5) * factor
    position = pixel[None, None, :] - first
    distance = ((position + 0.5 - centre) / factor.clamp(min=1.0)).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = torch.where((position >= 0) & (position < extent), weights, 0.0)
    return (weights / weights.sum(-1, keepdim=True)).float()


def cropped_originals(
    original: Callable[[int], Image], rows: NDArray[np.int64], scale: tuple[float, float], size: int, *key: object,
    threads: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the random resized crops of originals, uint8 [B, size, size, 3], with PIL itself, and which could be decoded.

    A thread reads, decodes and crops one image after the other: no more originals are in memory than there are threads (as
    many as there are processors, at most 16, by default), and their number changes nothing. Raises what `original` raises
    besides CorruptImage.
    """
    draws, result = Draws(len(rows), scale, *key), np.zeros((len(rows), size, size, 3), dtype=np.uint8)

    def work(place: int) -> bool:
        try:
            image = original(int(rows[place]))
        except decoding.CorruptImage:
            return False
        (box,) = draws.boxes(np.array([(image.height, image.width)]), slice(place, place + 1)).tolist()
        result[place] = crop(image, box, size)
        return True

    with decoding.whole_images_only(), ThreadPoolExecutor(threads or decoding.threads(), "originals") as pool:
        return result, np.fromiter(pool.map(work, range(len(rows))), np.bool_, len(rows))


def crop(image: Image, box: Sequence[int], size: int) -> NDArray[np.uint8]:
    """Return a box (top, left, height, width) of an image resized to uint8 [size, size, 3].

    The image is converted to RGB first, as the data sets' readers do it and as for the squares of evaluation.
    """
    from PIL import Image as pillow

    top, left, tall, wide = box
    part = decoding.rgb(image).crop((left, top, left + wide, top + tall))
    return np.asarray(part.resize((size, size), pillow.Resampling.BICUBIC))
