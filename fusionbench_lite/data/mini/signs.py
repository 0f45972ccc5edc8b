"""Traffic signs: sixteen European signs before sky, trees and walls."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.mini.canvas import (
    Floats,
    Frame,
    box,
    clouds,
    colour,
    disc,
    fill,
    fixed,
    lighting,
    paint,
    place,
    polygon,
    regular,
    segment,
    shade,
)
from fusionbench_lite.data.mini.glyphs import BOLD_FONTS, write

SIGNS = (
    "stop",
    "give way",
    "no entry",
    "limit 30",
    "limit 50",
    "limit 80",
    "turn left",
    "turn right",
    "straight on",
    "priority road",
    "danger",
    "crossroads",
    "parking",
    "no parking",
    "end of limits",
    "roundabout",
)
_RED, _BLUE, _YELLOW = fixed(0.78, 0.08, 0.1), fixed(0.08, 0.25, 0.68), fixed(0.97, 0.78, 0.1)
_WHITE, _BLACK = fixed(0.96, 0.96, 0.94), fixed(0.06, 0.06, 0.07)


def _text(images: Floats, frame: Frame, rng: np.random.Generator, text: str, size: float, tint: Floats) -> None:
    inner = Frame(frame.x / size, frame.y / size, frame.pixel / size)
    paint(images, write(rng, (text,), np.zeros(len(images), np.int64), inner, BOLD_FONTS[:1]), tint)


def _plate(images: Floats, frame: Frame, distance: Floats, rim: Floats, face: Floats, width: float) -> None:
    """A plate with this outline: ``rim`` colour at its edge, ``width`` wide, ``face`` colour within."""
    paint(images, frame.cover(distance), rim)
    paint(images, frame.cover(distance + width), face)


def _triangle(frame: Frame, turn: float) -> Floats:
    return regular(frame, 3, 1.0, turn)


def _arrow(images: Floats, frame: Frame, turn: float) -> None:
    """A white arrow that points up before it is turned clockwise by ``turn`` radians."""
    f = frame.turned(float(np.float32(turn)))
    shaft = box(f, 0.13, 0.38, 0.0, 0.17)
    head = polygon(f, [(-0.42, 0.0), (0.0, -0.58), (0.42, 0.0)])
    paint(images, f.cover(np.minimum(shaft, head)), _WHITE)


def _prohibition(images: Floats, frame: Frame, rng: np.random.Generator, sign: str) -> None:
    if sign == "stop":
        _plate(images, frame, regular(frame, 8, 0.98, np.pi / 8), _WHITE, _RED, 0.1)
        _text(images, frame, rng, "STOP", 0.78, _WHITE)
    elif sign == "no entry":
        _plate(images, frame, disc(frame, 0.95), _WHITE, _RED, 0.06)
        paint(images, frame.cover(box(frame, 0.62, 0.17)), _WHITE)
    elif sign == "no parking":
        _plate(images, frame, disc(frame, 0.95), _RED, _BLUE, 0.2)
        paint(images, frame.cover(segment(frame, (-0.55, -0.55), (0.55, 0.55), 0.2)), _RED)
    elif sign == "end of limits":
        _plate(images, frame, disc(frame, 0.95), _BLACK, _WHITE, 0.06)
        for offset in (-0.22, 0.0, 0.22):
            line = segment(frame, (-0.5 + offset, 0.5 + offset), (0.5 + offset, -0.5 + offset), 0.1)
            paint(images, frame.cover(line), _BLACK)
    else:
        _plate(images, frame, disc(frame, 0.95), _RED, _WHITE, 0.2)
        _text(images, frame, rng, sign.removeprefix("limit "), 0.62, _BLACK)


def _instruction(images: Floats, frame: Frame, rng: np.random.Generator, sign: str) -> None:
    if sign == "parking":
        _plate(images, frame, box(frame, 0.85, 0.85), _WHITE, _BLUE, 0.07)
        _text(images, frame, rng, "P", 0.7, _WHITE)
        return
    _plate(images, frame, disc(frame, 0.95), _WHITE, _BLUE, 0.06)
    if sign == "roundabout":
        for turn in (0.0, 2 * np.pi / 3, 4 * np.pi / 3):
            f = frame.turned(float(np.float32(turn)))
            arc = np.maximum(np.abs(np.hypot(f.x, f.y) - 0.5) - 0.11, -np.minimum(f.x * 0.5 + f.y * 0.87, f.x + 0.1))
            head = polygon(f, [(-0.05, 0.22), (-0.05, 0.78), (-0.4, 0.5)])
            paint(images, f.cover(np.minimum(arc, head)), _WHITE)
    else:
        _arrow(images, frame, {"turn left": -np.pi / 2, "turn right": np.pi / 2, "straight on": 0.0}[sign])


def _warning(images: Floats, frame: Frame, rng: np.random.Generator, sign: str) -> None:
    if sign == "priority road":
        _plate(images, frame, regular(frame, 4, 1.0), _WHITE, _YELLOW, 0.16)
    elif sign == "give way":
        _plate(images, frame.moved(0, -0.2), _triangle(frame.moved(0, -0.2), np.pi / 2), _RED, _WHITE, 0.17)
    else:
        f = frame.moved(0, 0.2)
        _plate(images, f, _triangle(f, -np.pi / 2), _RED, _WHITE, 0.15)
        if sign == "danger":
            paint(images, f.cover(segment(f, (0.0, -0.35), (0.0, 0.02), 0.17)), _BLACK)
            paint(images, f.cover(disc(f, 0.1, 0.0, 0.24)), _BLACK)
        else:
            for end in ((0.22, 0.26), (-0.22, 0.26)):
                paint(images, f.cover(segment(f, (-end[0], -0.22), end, 0.14)), _BLACK)


def draw_signs(rng: np.random.Generator, labels: NDArray[np.int64], part: str) -> Floats:
    """One sign before a blurred street, by day or dusk, slightly turned and seen from an angle."""
    n = len(labels)
    images = fill(n, colour(rng, n, hue=(0.2, 0.65), saturation=(0.05, 0.5), value=(0.25, 0.85)))
    shade(images, 0.35 * clouds(rng, n, 4))
    frame = place(rng, n, scale=(0.72, 0.95), turn=0.12, shift=0.1, stretch=0.06)
    for label, sign in enumerate(SIGNS):
        chosen = labels == label
        if not chosen.any():
            continue
        here, view = images[chosen], Frame(frame.x[chosen], frame.y[chosen], frame.pixel[chosen])
        if sign in ("stop", "no entry", "no parking", "end of limits") or sign.startswith("limit"):
            _prohibition(here, view, rng, sign)
        elif sign in ("priority road", "give way", "danger", "crossroads"):
            _warning(here, view, rng, sign)
        else:
            _instruction(here, view, rng, sign)
        images[chosen] = here
    lighting(rng, images, 0.3, 0.03)
    return images
