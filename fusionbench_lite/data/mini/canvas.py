"""Drawing on stacks of small images, all of a class at once: coordinates, soft shapes, colours, noise.

Conventions: ``n`` images of ``SIZE`` x ``SIZE`` pixels. A *plane* is a float32 array [n, SIZE, SIZE]; a coverage is a plane in
[0, 1]; an image stack is [n, SIZE, SIZE, 3] in [0, 1]; a per-image number is an array [n, 1, 1] or a scalar. Shapes are given by
signed distances (negative inside) in the units of a :class:`Frame`, whose visible square runs from -1 to 1 before it is
scaled, turned and shifted; ``y`` points down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 32

Floats = NDArray[Any]  # float32; numpy's own annotations do not keep track of that
Number = float | Floats


@dataclass(frozen=True)
class Frame:
    """Object coordinates of every pixel centre: ``x``, ``y`` planes and ``pixel``, the width of one pixel in object units."""

    x: Floats
    y: Floats
    pixel: Floats

    def moved(self, dx: Number = 0.0, dy: Number = 0.0) -> Frame:
        """The same frame with its origin at (dx, dy)."""
        return Frame(self.x - dx, self.y - dy, self.pixel)

    def turned(self, angle: Number) -> Frame:
        """The same frame turned by ``angle`` radians about its origin."""
        c, s = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        return Frame(self.x * c + self.y * s, self.y * c - self.x * s, self.pixel)

    def cover(self, distance: Floats) -> Floats:
        """Coverage of each pixel by the shape with this signed distance: one pixel of soft edge."""
        return np.asarray(np.clip(0.5 - distance / self.pixel, 0.0, 1.0), dtype=np.float32)


def per_image(rng: np.random.Generator, n: int, low: float, high: float) -> Floats:
    """One uniform number per image, [n, 1, 1]."""
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def place(
    rng: np.random.Generator,
    n: int,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    turn: float = 0.0,
    shift: float = 0.0,
    stretch: float = 0.0,
) -> Frame:
    """A frame per image: size in ``scale``, turned by at most ``turn`` radians, shifted by at most ``shift`` (1 is half an image),
    width and height stretched against each other by at most the fraction ``stretch``."""
    axis = ((np.arange(SIZE, dtype=np.float32) + 0.5) * (2.0 / SIZE) - 1.0)[None]
    size = per_image(rng, n, *scale)
    wide = 1.0 + per_image(rng, n, -stretch, stretch)
    x = np.broadcast_to(axis[:, None, :], (n, SIZE, SIZE)) - per_image(rng, n, -shift, shift)
    y = np.broadcast_to(axis[:, :, None], (n, SIZE, SIZE)) - per_image(rng, n, -shift, shift)
    frame = Frame(x, y, (2.0 / SIZE) / size).turned(per_image(rng, n, -turn, turn))
    return Frame((frame.x / (size * wide)).astype(np.float32), (frame.y * wide / size).astype(np.float32), frame.pixel)


# Signed distances ------------------------------------------------------------------------------------------------------


def disc(frame: Frame, radius: Number, x: Number = 0.0, y: Number = 0.0) -> Floats:
    """Signed distance to a disc."""
    return np.asarray(np.hypot(frame.x - x, frame.y - y) - radius, dtype=np.float32)


def box(frame: Frame, half_width: Number, half_height: Number, x: Number = 0.0, y: Number = 0.0) -> Floats:
    """Signed distance (exact inside, a lower bound at the corners) to an upright box."""
    return np.asarray(
        np.maximum(np.abs(frame.x - x) - half_width, np.abs(frame.y - y) - half_height), dtype=np.float32
    )


def segment(frame: Frame, start: tuple[Number, Number], end: tuple[Number, Number], width: Number) -> Floats:
    """Signed distance to a line from ``start`` to ``end`` with round ends, ``width`` wide."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    px, py = frame.x - start[0], frame.y - start[1]
    along = np.clip((px * dx + py * dy) / np.maximum(dx * dx + dy * dy, 1e-12), 0.0, 1.0)  # a line of no length is a dot
    return np.asarray(np.hypot(px - along * dx, py - along * dy) - width / 2.0, dtype=np.float32)


def polygon(frame: Frame, corners: Sequence[tuple[Number, Number]]) -> Floats:
    """Signed distance to a simple polygon, its corners in order; corners may differ from image to image."""
    nearest = np.full(frame.x.shape, np.inf, dtype=np.float32)
    inside = np.zeros(frame.x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
        nearest = np.minimum(nearest, segment(frame, (ax, ay), (bx, by), 0.0))
        crosses = (np.asarray(ay) > frame.y) != (np.asarray(by) > frame.y)
        height = np.where(crosses, np.asarray(by) - ay, 1.0)  # a flat edge is never crossed: no division by zero
        inside ^= crosses & (frame.x < (np.asarray(bx) - ax) * (frame.y - ay) / height + ax)
    return np.where(inside, -nearest, nearest)


def regular(frame: Frame, sides: int, radius: float, turn: float = 0.0) -> Floats:
    """Signed distance to a regular polygon with ``sides`` sides whose corners are ``radius`` from the origin."""
    angles = turn + 2.0 * np.pi * np.arange(sides) / sides
    return polygon(frame, [(float(radius * np.cos(a)), float(radius * np.sin(a))) for a in angles])


# Colours and surfaces --------------------------------------------------------------------------------------------------


def colour(
    rng: np.random.Generator,
    n: int,
    hue: tuple[float, float] = (0.0, 1.0),
    saturation: tuple[float, float] = (0.0, 1.0),
    value: tuple[float, float] = (0.0, 1.0),
) -> Floats:
    """One colour per image, [n, 1, 1, 3], hue, saturation and value uniform in the given ranges (hue 1 = 360 degrees)."""
    h, s, v = (rng.uniform(low, high, (n, 1)) for low, high in (hue, saturation, value))
    wheel = (np.array([5.0, 3.0, 1.0]) + 6.0 * h) % 6.0
    rgb = v * (1.0 - s * np.clip(np.minimum(wheel, 4.0 - wheel), 0.0, 1.0))
    return np.asarray(rgb[:, None, None, :], dtype=np.float32)


def fixed(red: float, green: float, blue: float) -> Floats:
    """One colour for all images, [1, 1, 1, 3]."""
    return np.array([red, green, blue], dtype=np.float32)[None, None, None]


def fill(n: int, tint: Floats) -> Floats:
    """A stack of plain images."""
    return np.broadcast_to(tint, (n, SIZE, SIZE, 3)).astype(np.float32)


def paint(images: Floats, coverage: Floats, tint: Floats) -> None:
    """Lay ``tint`` ([n or 1, 1 or SIZE, 1 or SIZE, 3]) over ``images`` in place, as opaque as ``coverage`` says."""
    images += coverage[..., None] * (tint - images)


@lru_cache(maxsize=32)
def _spread(cells: int) -> Floats:
    """[SIZE, cells + 1] weights of linear interpolation from a coarse grid to the pixels."""
    position = (np.arange(SIZE) + 0.5) * cells / SIZE
    return np.clip(1.0 - np.abs(position[:, None] - np.arange(cells + 1)), 0.0, 1.0).astype(np.float32)


def clouds(rng: np.random.Generator, n: int, cells: int) -> Floats:
    """Smooth noise with about ``cells`` blobs across the image: a plane with values from -1 to 1."""
    coarse = rng.uniform(-1.0, 1.0, (n, cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(_spread(cells) @ coarse @ _spread(cells).T, dtype=np.float32)


def grain(rng: np.random.Generator, images: Floats, amount: float) -> None:
    """Add pixel noise of standard deviation ``amount`` to ``images`` in place."""
    images += amount * rng.standard_normal(images.shape, dtype=np.float32)


def shade(images: Floats, plane: Floats) -> None:
    """Multiply ``images`` by ``1 + plane`` in place."""
    images *= (1.0 + plane)[..., None]


def lighting(rng: np.random.Generator, images: Floats, spread: float = 0.2, noise: float = 0.02) -> None:
    """What every camera adds: brightness that differs between images and across each, and a little pixel noise."""
    shade(images, per_image(rng, len(images), -spread, spread) + 0.5 * spread * clouds(rng, len(images), 1))
    grain(rng, images, noise)
