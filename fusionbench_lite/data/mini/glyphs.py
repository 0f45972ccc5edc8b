"""Writing: handwritten digits from scikit-learn, letters and numbers in the DejaVu fonts that matplotlib carries."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.mini.canvas import (
    Floats,
    Frame,
    clouds,
    colour,
    fill,
    grain,
    lighting,
    paint,
    per_image,
    place,
    shade,
)

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
)
BOLD_FONTS = tuple(name for name in FONTS if "Bold" in name)
DIGITS = tuple("0123456789")
LETTERS = tuple("ABCEFHKLMNPRSTXZ")
_GLYPH = 48  # side of a rendered glyph's square
_HELD_OUT = 497  # handwritten digits kept for testing, of 1,797


def sample(atlas: Floats, index: NDArray[np.int64], frame: Frame) -> Floats:
    """Read picture ``index[i]`` of ``atlas`` [m, side, side] at the coordinates of image i, linearly interpolated, 0 outside."""
    side = atlas.shape[-1]
    padded = np.pad(atlas, ((0, 0), (1, 1), (1, 1)))
    u = np.clip((frame.x + 1.0) * (side / 2.0) + 0.5, 0.0, side + 0.999)
    v = np.clip((frame.y + 1.0) * (side / 2.0) + 0.5, 0.0, side + 0.999)
    left, top = u.astype(np.int64), v.astype(np.int64)
    du, dv = (u - left).astype(np.float32), (v - top).astype(np.float32)
    which = index[:, None, None]
    upper = padded[which, top, left] * (1 - du) + padded[which, top, left + 1] * du
    lower = padded[which, top + 1, left] * (1 - du) + padded[which, top + 1, left + 1] * du
    return np.asarray(upper * (1 - dv) + lower * dv, dtype=np.float32)


@lru_cache(maxsize=16)
def atlas(texts: tuple[str, ...], fonts: tuple[str, ...], height: int = 40) -> Floats:
    """Coverage of every text in every font, centred, [fonts * texts, 48, 48], font by font; wide texts are set smaller."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    pictures = []
    for font in fonts:
        for text in texts:
            size = height
            while True:
                face = ImageFont.truetype(str(folder / f"{font}.ttf"), size)
                x0, y0, x1, y1 = face.getbbox(text)
                if max(x1 - x0, y1 - y0) <= _GLYPH - 4:
                    break
                size -= 1
            picture = Image.new("L", (_GLYPH, _GLYPH))
            corner = ((_GLYPH - (x1 - x0)) / 2 - x0, (_GLYPH - (y1 - y0)) / 2 - y0)
            ImageDraw.Draw(picture).text(corner, text, fill=255, font=face)
            pictures.append(np.asarray(picture, dtype=np.float32) / 255.0)
    return np.stack(pictures)


def write(
    rng: np.random.Generator, texts: tuple[str, ...], which: NDArray[np.int64], frame: Frame, fonts: tuple[str, ...]
) -> Floats:
    """Coverage of text ``texts[which[i]]`` in image i, each in a random one of ``fonts``; it fills the frame's square."""
    font = rng.integers(len(fonts), size=len(which))
    return sample(atlas(texts, fonts), font * len(texts) + which, frame)


@lru_cache(maxsize=2)
def _handwriting(part: str) -> tuple[Floats, NDArray[np.int64]]:
    """The scikit-learn digits of one part, smoothly enlarged to 32 x 32, and their labels."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(1797).permutation(len(labels))  # which originals are for testing never depends on the seed
    chosen = order[:_HELD_OUT] if part == "test" else order[_HELD_OUT:]
    enlarged = zoom(images[chosen].reshape(-1, 8, 8) / 16.0, (1, 4, 4), order=3, mode="grid-constant", grid_mode=True)
    return np.clip(enlarged, 0.0, 1.0).astype(np.float32), labels[chosen].astype(np.int64)


def draw_digits(rng: np.random.Generator, labels: NDArray[np.int64], part: str) -> Floats:
    """Real handwriting (scikit-learn's digits), light ink on a dark ground. Train and test use different originals."""
    pictures, answers = _handwriting(part)
    source = np.empty(len(labels), dtype=np.int64)
    for digit in range(10):
        wanted = np.flatnonzero(labels == digit)
        source[wanted] = rng.choice(np.flatnonzero(answers == digit), len(wanted))
    n = len(labels)
    ink = sample(pictures, source, place(rng, n, scale=(0.9, 0.95), turn=0.06, shift=0.03, stretch=0.03))
    ink = np.clip((ink - 0.25) * per_image(rng, n, 1.6, 2.4), 0.0, 1.0)
    images = fill(n, colour(rng, n, saturation=(0.0, 0.2), value=(0.0, 0.15)))
    paint(images, ink, colour(rng, n, saturation=(0.0, 0.15), value=(0.8, 1.0)))
    grain(rng, images, 0.02)
    return images


def draw_letters(rng: np.random.Generator, labels: NDArray[np.int64], part: str) -> Floats:
    """Capital letters in eight fonts, dark ink on coloured paper."""
    n = len(labels)
    images = fill(n, colour(rng, n, hue=(0.05, 0.2), saturation=(0.1, 0.45), value=(0.8, 1.0)))
    shade(images, 0.08 * clouds(rng, n, 6))
    frame = place(rng, n, scale=(0.85, 0.97), turn=0.08, shift=0.06)
    paint(images, write(rng, LETTERS, labels, frame, FONTS), colour(rng, n, saturation=(0.2, 1.0), value=(0.05, 0.35)))
    lighting(rng, images, 0.12)
    return images


def draw_house_numbers(rng: np.random.Generator, labels: NDArray[np.int64], part: str) -> Floats:
    """A digit of a house number plate, its neighbours cut off left and right; colours as they come."""
    n = len(labels)
    hue = per_image(rng, n, 0.0, 1.0)
    wall = fill(n, colour(rng, n, saturation=(0.2, 0.7), value=(0.15, 0.5)))
    ink = colour(rng, n, saturation=(0.0, 0.35), value=(0.8, 1.0))
    dark_on_light = hue < 0.4  # a minority of the plates is printed the other way round
    base = np.where(dark_on_light[..., None], ink, wall).astype(np.float32)
    tint = np.where(dark_on_light[..., None], wall, ink).astype(np.float32)
    shade(base, 0.15 * clouds(rng, n, 3))
    frame = place(rng, n, scale=(0.85, 0.97), turn=0.06, shift=0.05)
    fonts = rng.integers(len(FONTS), size=n)  # the digits of one plate share their font
    for offset in (-1.25, 1.25):
        neighbour = rng.integers(10, size=n)
        paint(base, sample(atlas(DIGITS, FONTS), fonts * 10 + neighbour, frame.moved(offset)), tint)
    paint(base, sample(atlas(DIGITS, FONTS), fonts * 10 + labels, frame), tint)
    blurred = (np.roll(base, 1, 1) + np.roll(base, -1, 1) + np.roll(base, 1, 2) + np.roll(base, -1, 2)) / 4.0
    images = np.asarray(base + per_image(rng, n, 0.0, 0.6)[..., None] * (blurred - base), dtype=np.float32)
    lighting(rng, images, 0.2, 0.03)
    return images

