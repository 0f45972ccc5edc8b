"""Two tasks about things: how many balls lie on a cloth, and what piece of clothing this is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.mini.canvas import (
    Floats,
    Frame,
    Number,
    box,
    clouds,
    colour,
    disc,
    fill,
    fixed,
    grain,
    lighting,
    paint,
    per_image,
    place,
    polygon,
    segment,
    shade,
)

COUNTS = ("one", "two", "three", "four", "five", "six")
GARMENTS = ("t-shirt", "pullover", "coat", "dress", "skirt", "trousers", "sneaker", "boot", "bag", "hat")


_FACES = ((4,), (0, 8), (0, 4, 8), (0, 2, 6, 8), (0, 2, 4, 6, 8), (0, 2, 3, 5, 6, 8))  # cells of a 3 x 3 board


def draw_counts(rng: np.random.Generator, labels: NDArray[np.int64], part: str) -> Floats:
    """One to six balls laid out as on a die, some faces mirrored, on a plain cloth."""
    n = len(labels)
    images = fill(n, colour(rng, n, saturation=(0.1, 0.5), value=(0.1, 0.3)))
    shade(images, 0.2 * clouds(rng, n, 2))
    frame = place(rng, n, scale=(0.9, 1.0), turn=0.06, shift=0.05)
    mirrored = np.where(rng.random(n) < 0.5, -1.0, 1.0).astype(np.float32)
    radius = per_image(rng, n, 0.19, 0.23)
    tint = colour(rng, n, saturation=(0.55, 0.9), value=(0.85, 1.0))
    cells = np.array([face + (0,) * (6 - len(face)) for face in _FACES])[labels]
    for ball in range(6):
        x = (mirrored * (cells[:, ball] % 3 - 1) * 0.6).astype(np.float32)[:, None, None] + per_image(rng, n, -0.05, 0.05)
        y = ((cells[:, ball] // 3 - 1) * 0.6).astype(np.float32)[:, None, None] + per_image(rng, n, -0.05, 0.05)
        there = (labels >= ball).astype(np.float32)[:, None, None]
        paint(images, there * 0.5 * frame.cover(disc(frame, radius, x + 0.06, y + 0.08)), fixed(0.0, 0.0, 0.0))
        paint(images, there * frame.cover(disc(frame, radius, x, y)), tint)
        paint(images, there * 0.8 * frame.cover(disc(frame, radius * 0.35, x - 0.06, y - 0.06)), fixed(1.0, 1.0, 1.0))
    grain(rng, images, 0.02)
    return images


def _mirrored(points: Sequence[tuple[Number, Number]]) -> list[tuple[Number, Number]]:
    """An outline symmetric about the middle from its right half, top to bottom."""
    return [*points, *((-x, y) for x, y in reversed(points))]


def _top(f: Frame, rng: np.random.Generator, sleeve: float, length: float) -> Floats:
    """Something with sleeves: ``sleeve`` and ``length`` say how far down they reach."""
    n = len(f.x)
    wide = per_image(rng, n, 0.4, 0.48)
    reach = sleeve + per_image(rng, n, -0.04, 0.04)
    tip = 0.62 + 0.28 * (reach + 0.8)
    tip = np.minimum(tip, 0.92).astype(np.float32)
    body = _mirrored([(0.18, -0.82), (0.45, -0.75), (wide, length)])
    arm: list[tuple[Number, Number]] = [(0.3, -0.8), (0.5, -0.74), (tip, reach), (tip - 0.26, reach + 0.1), (0.38, -0.3)]
    left: list[tuple[Number, Number]] = [(-x, y) for x, y in arm]
    return np.minimum(polygon(f, body), np.minimum(polygon(f, arm), polygon(f, left)))


def _outline(name: str, f: Frame, rng: np.random.Generator) -> Floats:
    n = len(f.x)
    vary = per_image(rng, n, -0.06, 0.06)
    if name == "t-shirt":
        return np.maximum(_top(f, rng, -0.25, 0.75), -disc(f, 0.17, 0.0, -0.85))
    if name == "pullover":
        return np.maximum(_top(f, rng, 0.6, 0.7), -disc(f, 0.12, 0.0, -0.86))
    if name == "coat":
        return _top(f, rng, 0.5, 0.95)
    if name == "dress":
        return polygon(
            f, _mirrored([(0.14, -0.92), (0.24, -0.92), (0.28, -0.5), (0.17 + vary, -0.15), (0.6 + vary, 0.92)])
        )
    if name == "skirt":
        return polygon(f, _mirrored([(0.3 + vary, -0.55), (0.78 + vary, 0.6)]))
    if name == "trousers":
        legs: list[tuple[Number, Number]] = [(0.38, -0.9), (0.45 + vary, 0.92), (0.16 + vary, 0.92), (0.02, -0.25)]
        return polygon(f, _mirrored(legs))
    if name == "sneaker":
        shoe: list[tuple[Number, Number]] = [(-0.85, -0.35), (-0.45, -0.42), (-0.25, -0.25), (0.2, 0.02 + vary)]
        shoe += [(0.75, 0.12), (0.9, 0.3), (0.9, 0.45)]
        return polygon(f, [*shoe, (-0.85, 0.45)])
    if name == "boot":
        shaft: list[tuple[Number, Number]] = [(-0.55, -0.9), (0.05 + vary, -0.9), (0.08, 0.15), (0.6, 0.3), (0.75, 0.55)]
        shaft += [(0.75, 0.85), (-0.55, 0.85)]
        return polygon(f, shaft)
    if name == "bag":
        strap = np.abs(np.hypot(f.x / (0.45 + vary), (f.y + 0.25) / 0.6) - 1.0) * 0.45 - 0.06
        return np.asarray(np.minimum(box(f, 0.78, 0.5 + vary, 0.0, 0.3), np.maximum(strap, f.y + 0.1)), dtype=np.float32)
    crown = np.maximum(np.hypot(f.x / 0.5, (f.y - 0.2) / (0.75 + vary)) - 1.0, f.y - 0.3) * 0.5
    brim = (np.hypot(f.x / 0.95, (f.y - 0.3) / 0.2) - 1.0) * 0.2
    return np.asarray(np.minimum(crown, brim), dtype=np.float32)


def _details(name: str, images: Floats, f: Frame, light: Floats, dark: Floats) -> None:
    """What tells related pieces apart: buttons, soles, seams, bands."""
    if name == "coat":
        paint(images, f.cover(segment(f, (0.0, -0.8), (0.0, 0.95), 0.06)), dark)
        for y in (-0.3, 0.05, 0.4):
            paint(images, f.cover(disc(f, 0.07, 0.12, y)), light)
        paint(images, f.cover(polygon(f, _mirrored([(0.0, -0.35), (0.22, -0.82)]))), light)
    elif name == "pullover":
        paint(images, f.cover(box(f, 0.44, 0.05, 0.0, 0.63)), dark)
    elif name == "dress":
        paint(images, f.cover(box(f, 0.19, 0.06, 0.0, -0.15)), light)
    elif name == "skirt":
        paint(images, f.cover(box(f, 0.32, 0.07, 0.0, -0.5)), dark)
    elif name == "trousers":
        paint(images, f.cover(box(f, 0.38, 0.05, 0.0, -0.85)), dark)
    elif name == "sneaker":
        paint(images, f.cover(box(f, 0.9, 0.09, 0.0, 0.42)), fixed(0.95, 0.95, 0.93))
        for x in (-0.2, 0.0, 0.2):
            paint(images, f.cover(segment(f, (x, 0.12 + x / 3), (x + 0.15, -0.08 + x / 2), 0.06)), light)
    elif name == "boot":
        paint(images, f.cover(box(f, 0.65, 0.08, 0.1, 0.8)), dark)
    elif name == "bag":
        paint(images, f.cover(segment(f, (-0.75, 0.05), (0.75, 0.05), 0.05)), dark)
        paint(images, f.cover(box(f, 0.1, 0.09, 0.0, 0.08)), light)
    elif name == "hat":
        paint(images, f.cover(np.maximum(np.abs(f.y - 0.1) - 0.09, np.abs(f.x) - 0.48)), dark)


def draw_garments(rng: np.random.Generator, labels: NDArray[np.int64], part: str) -> Floats:
    """One piece of clothing or footwear of any colour, laid out on a light table."""
    n = len(labels)
    images = fill(n, colour(rng, n, saturation=(0.0, 0.12), value=(0.82, 1.0)))
    frame = place(rng, n, scale=(0.78, 0.98), turn=0.12, shift=0.08, stretch=0.06)
    cloth = fill(n, colour(rng, n, saturation=(0.3, 0.9), value=(0.3, 0.75)))
    shade(cloth, 0.12 * clouds(rng, n, 5) + 0.1 * np.sign(np.sin(frame.y * 12.0)) * (rng.random((n, 1, 1)) < 0.3))
    light, dark = np.clip(cloth * 1.6 + 0.1, 0, 1), cloth * 0.5
    for label, name in enumerate(GARMENTS):
        k = labels == label
        f, here = Frame(frame.x[k], frame.y[k], frame.pixel[k]), images[k]
        distance = _outline(name, f, rng)
        lower = f.moved(0.06, 0.06)
        paint(here, 0.25 * lower.cover(np.roll(distance, (1, 1), (1, 2))), fixed(0.0, 0.0, 0.0))
        paint(here, f.cover(distance), cloth[k])
        _details(name, here, f, light[k], dark[k])
        images[k] = here
    lighting(rng, images, 0.1)
    return images
