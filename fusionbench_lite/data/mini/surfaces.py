"""Two tasks about surfaces: textures seen close up, and land seen from above."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.mini.canvas import (
    Floats,
    Frame,
    clouds,
    colour,
    fill,
    fixed,
    grain,
    lighting,
    paint,
    per_image,
    place,
    shade,
)

TEXTURES = ("striped", "chequered", "dotted", "gridded", "wavy", "zigzagged", "bricked", "ringed", "marbled", "speckled")
LAND = ("forest", "sea", "river", "fields", "village", "motorway", "desert", "coast", "orchard", "mountains")


def _wave(phase: Floats) -> Floats:
    """A triangle wave of period 1 between 0 and 1."""
    return np.asarray(np.abs((phase % 1.0) * 2.0 - 1.0), dtype=np.float32)


def _sharp(value: Floats, threshold: Floats | float, width: float = 0.12) -> Floats:
    return np.asarray(np.clip((value - threshold) / width + 0.5, 0.0, 1.0), dtype=np.float32)


def _pattern(name: str, rng: np.random.Generator, f: Frame, u: Floats, v: Floats) -> Floats:
    """Coverage of the second colour; ``u`` and ``v`` run across the image, about four to five periods each."""
    n = len(u)
    if name == "striped":
        return _sharp(_wave(u), 0.5)
    if name == "chequered":
        return _sharp((_wave(u * 0.7) - 0.5) * (_wave(v * 0.7) - 0.5) * 4.0, 0.0, 0.3)
    if name == "dotted":
        return _sharp(-np.hypot(u % 1.0 - 0.5, v % 1.0 - 0.5), -0.3, 0.15)
    if name == "gridded":
        return _sharp(np.maximum(_wave(u * 0.9), _wave(v * 0.9)), 0.72, 0.2)
    if name == "wavy":
        return _sharp(_wave(u * 0.9 + 0.28 * np.sin(v * 3.0)), 0.5, 0.2)
    if name == "zigzagged":
        return _sharp(_wave(u * 0.9 + 0.8 * _wave(v * 0.6)), 0.5, 0.2)
    if name == "bricked":
        row = np.floor(v)
        return _sharp(np.maximum(_wave(v), _wave(u * 0.5 + 0.5 * (row % 2.0))), 0.76, 0.2)
    if name == "ringed":
        x0, y0 = per_image(rng, n, -0.5, 0.5), per_image(rng, n, -0.5, 0.5)
        return _sharp(_wave(np.hypot(f.x - x0, f.y - y0) * per_image(rng, n, 2.2, 3.0)), 0.5, 0.25)
    if name == "marbled":
        return _sharp(-np.abs(clouds(rng, n, 4) + 0.5 * clouds(rng, n, 8)), -0.12, 0.15)
    return _sharp(rng.uniform(0.0, 1.0, u.shape).astype(np.float32), per_image(rng, n, 0.7, 0.82), 0.1)


def draw_textures(rng: np.random.Generator, labels: NDArray[np.int64], part: str) -> Floats:
    """A two-coloured pattern of any colour, size and direction."""
    n = len(labels)
    frame = place(rng, n, turn=np.pi / 12, scale=(0.9, 1.1))
    u = frame.x * 2.3 + per_image(rng, n, 0.0, 1.0)
    v = frame.y * 2.3 + per_image(rng, n, 0.0, 1.0)
    flip = rng.random((n, 1, 1)) < 0.5
    u, v = np.where(flip, v, u), np.where(flip, u, v)
    ground = colour(rng, n, saturation=(0.2, 0.9), value=(0.15, 0.45))
    figure = colour(rng, n, saturation=(0.1, 0.8), value=(0.65, 1.0))
    swap = rng.random((n, 1, 1, 1)) < 0.15
    images = fill(n, np.where(swap, figure, ground))
    tint = np.where(swap, ground, figure)
    for label, name in enumerate(TEXTURES):
        k = labels == label
        here = images[k]
        paint(here, _pattern(name, rng, Frame(frame.x[k], frame.y[k], frame.pixel[k]), u[k], v[k]), tint[k])
        images[k] = here
    lighting(rng, images, 0.15, 0.03)
    return images


# Land: each function draws one kind on [n] images; ``f`` is a randomly turned frame -------------------------------------


def _meadow(rng: np.random.Generator, n: int) -> Floats:
    images = fill(n, colour(rng, n, hue=(0.2, 0.3), saturation=(0.35, 0.6), value=(0.4, 0.6)))
    shade(images, 0.15 * clouds(rng, n, 6))
    return images


def _forest(rng: np.random.Generator, f: Frame) -> Floats:
    n = len(f.x)
    images = fill(n, colour(rng, n, hue=(0.27, 0.38), saturation=(0.5, 0.8), value=(0.2, 0.32)))
    shade(images, 0.5 * clouds(rng, n, 11) + 0.3 * clouds(rng, n, 16))
    return images


def _water(rng: np.random.Generator, n: int) -> Floats:
    return fill(n, colour(rng, n, hue=(0.53, 0.62), saturation=(0.5, 0.8), value=(0.3, 0.55)))


def _sea(rng: np.random.Generator, f: Frame) -> Floats:
    n = len(f.x)
    images = _water(rng, n)
    crests = _wave(f.y * per_image(rng, n, 2.5, 4.0) + 0.4 * clouds(rng, n, 4))
    shade(images, 0.25 * (crests - 0.5) + 0.1 * clouds(rng, n, 3))
    return images


def _river(rng: np.random.Generator, f: Frame) -> Floats:
    n = len(f.x)
    images = _meadow(rng, n)
    middle = per_image(rng, n, 0.2, 0.4) * np.sin(f.y * 2.5 + per_image(rng, n, 0.0, 6.3))
    paint(images, f.cover(np.abs(f.x - middle) - per_image(rng, n, 0.14, 0.26)), _water(rng, n))
    return images


def _fields(rng: np.random.Generator, f: Frame) -> Floats:
    n = len(f.x)
    images = fill(n, fixed(0.3, 0.42, 0.2))
    edges_x = np.sort(rng.uniform(-0.7, 0.7, (2, n, 1, 1)).astype(np.float32), axis=0)
    edges_y = np.sort(rng.uniform(-0.7, 0.7, (2, n, 1, 1)).astype(np.float32), axis=0)
    column, row = sum(f.x > e for e in edges_x), sum(f.y > e for e in edges_y)
    for patch in range(9):
        tint = colour(rng, n, hue=(0.08, 0.3), saturation=(0.35, 0.7), value=(0.45, 0.85))
        furrows = 0.12 * (_wave((f.x if patch % 2 else f.y) * 5.0) - 0.5)
        paint(images, (column * 3 + row == patch).astype(np.float32), tint * (1.0 + furrows)[..., None])
    return images


def _village(rng: np.random.Generator, f: Frame) -> Floats:
    n = len(f.x)
    images = _meadow(rng, n)
    paint(images, f.cover(np.minimum(np.abs(f.x), np.abs(f.y)) - 0.09), fixed(0.62, 0.6, 0.58))
    for x in (-0.9, -0.38, 0.38, 0.9):
        for y in (-0.9, -0.38, 0.38, 0.9):
            dx, dy = per_image(rng, n, -0.08, 0.08), per_image(rng, n, -0.08, 0.08)
            roof = np.maximum(np.abs(f.x - x - dx) - 0.15, np.abs(f.y - y - dy) - 0.12)
            tint = colour(rng, n, hue=(0.0, 0.06), saturation=(0.4, 0.8), value=(0.55, 0.85))
            paint(images, f.cover(roof), tint * (1.0 - 0.25 * (f.y > y + dy))[..., None])
    return images


def _motorway(rng: np.random.Generator, f: Frame) -> Floats:
    n = len(f.x)
    images = _meadow(rng, n)
    x = f.x - per_image(rng, n, -0.3, 0.3)
    paint(images, f.cover(np.abs(x) - 0.34), fixed(0.42, 0.42, 0.44))
    paint(images, f.cover(np.abs(x) - 0.04), fixed(0.3, 0.45, 0.22))
    dashes = np.maximum(np.abs(np.abs(x) - 0.19) - 0.03, 0.3 - _wave(f.y * 2.5))
    paint(images, f.cover(dashes), fixed(0.95, 0.95, 0.95))
    for lane in (-0.27, -0.11, 0.11, 0.27):
        y = per_image(rng, n, -1.0, 1.0)
        paint(images, f.cover(np.maximum(np.abs(x - lane) - 0.05, np.abs(f.y - y) - 0.1)), colour(rng, n, value=(0.2, 1.0)))
    return images


def _desert(rng: np.random.Generator, f: Frame) -> Floats:
    n = len(f.x)
    images = fill(n, colour(rng, n, hue=(0.07, 0.12), saturation=(0.35, 0.6), value=(0.7, 0.95)))
    dunes = _wave(f.y * per_image(rng, n, 1.5, 2.5) + 0.5 * clouds(rng, n, 3))
    shade(images, 0.3 * (dunes - 0.5))
    return images


def _coast(rng: np.random.Generator, f: Frame) -> Floats:
    n = len(f.x)
    images = _meadow(rng, n)
    shore = f.x + 0.25 * clouds(rng, n, 4) - per_image(rng, n, -0.35, 0.35)
    paint(images, f.cover(-shore - 0.3), fixed(0.9, 0.82, 0.58))
    paint(images, f.cover(-shore), fixed(0.9, 0.95, 0.97))
    paint(images, f.cover(0.08 - shore), _water(rng, n))
    return images


def _orchard(rng: np.random.Generator, f: Frame) -> Floats:
    n = len(f.x)
    images = fill(n, colour(rng, n, hue=(0.08, 0.17), saturation=(0.35, 0.5), value=(0.6, 0.8)))
    step = per_image(rng, n, 0.38, 0.48)
    px, py = per_image(rng, n, 0.0, 1.0), per_image(rng, n, 0.0, 1.0)
    trees = np.hypot((f.x / step + px) % 1.0 - 0.5, (f.y / step + py) % 1.0 - 0.5) * step - 0.14
    paint(images, f.cover(trees), colour(rng, n, hue=(0.25, 0.36), saturation=(0.5, 0.8), value=(0.25, 0.4)))
    return images


def _mountains(rng: np.random.Generator, f: Frame) -> Floats:
    n = len(f.x)
    height = clouds(rng, n, 3) + 0.5 * clouds(rng, n, 6)
    slope = np.gradient(height, axis=2) + np.gradient(height, axis=1)
    images = fill(n, colour(rng, n, hue=(0.05, 0.12), saturation=(0.05, 0.25), value=(0.4, 0.55)))
    paint(images, _sharp(height, per_image(rng, n, -0.1, 0.2), 0.2), fixed(0.93, 0.95, 0.98))
    shade(images, np.clip(2.2 * slope, -0.45, 0.45))
    return images


_LAND: tuple[Callable[[np.random.Generator, Frame], Floats], ...] = (
    _forest,
    _sea,
    _river,
    _fields,
    _village,
    _motorway,
    _desert,
    _coast,
    _orchard,
    _mountains,
)


def draw_land(rng: np.random.Generator, labels: NDArray[np.int64], part: str) -> Floats:
    """Land from above, north at any side."""
    images = np.empty((len(labels), 32, 32, 3), dtype=np.float32)
    for label, kind in enumerate(_LAND):
        chosen = np.flatnonzero(labels == label)
        images[chosen] = kind(rng, place(rng, len(chosen), scale=(0.9, 1.2), turn=np.pi, shift=0.1))
    lighting(rng, images, 0.15, 0.0)
    grain(rng, images, 0.025)
    return images
