"""The embedded tasks of the suite ``mini8``: eight small image tasks drawn by code from a seed.

Each task is a tuple of class names and a function that draws one float image in [0, 1] per label. Everything random comes from
generators keyed by (seed, task, part), so neither the order of the tasks nor which of them are drawn changes a single bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.base.randomness import generator
from fusionbench_lite.data.mini import glyphs, signs, surfaces, things
from fusionbench_lite.data.mini.canvas import SIZE, Floats

TRAIN, TEST = 3000, 1000  # images per task
_AT_ONCE = 250  # images drawn together: few enough that their planes stay in the processor's cache


@dataclass(frozen=True)
class Drawing:
    """A drawn task: class names and ``draw(generator, labels [n], "train" or "test") -> [n, 32, 32, 3]``."""

    classes: tuple[str, ...]
    draw: Callable[[np.random.Generator, NDArray[np.int64], str], Floats]


DRAWINGS: dict[str, Drawing] = {
    "digits": Drawing(glyphs.DIGITS, glyphs.draw_digits),
    "letters": Drawing(glyphs.LETTERS, glyphs.draw_letters),
    "house_numbers": Drawing(glyphs.DIGITS, glyphs.draw_house_numbers),
    "signs": Drawing(signs.SIGNS, signs.draw_signs),
    "textures": Drawing(surfaces.TEXTURES, surfaces.draw_textures),
    "land": Drawing(surfaces.LAND, surfaces.draw_land),
    "counts": Drawing(things.COUNTS, things.draw_counts),
    "garments": Drawing(things.GARMENTS, things.draw_garments),
}


def names() -> list[str]:
    """The eight tasks of ``mini8``, in their order."""
    return list(DRAWINGS)


def draw(name: str, part: str, seed: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw ``count`` images of one part ("train" or "test"): uint8 [count, 32, 32, 3] and labels [count], classes balanced.

    Raises KeyError for a task that is not drawn; :func:`fusionbench_lite.data.load_task` checks names first.
    """
    drawing = DRAWINGS[name]
    classes = np.arange(count, dtype=np.int64) % len(drawing.classes)
    labels = generator(seed, "draw", name, part, "labels").permutation(classes)
    images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, count, _AT_ONCE):
        some = labels[start : start + _AT_ONCE]
        drawn = drawing.draw(generator(seed, "draw", name, part, start), some, part)
        images[start : start + _AT_ONCE] = np.rint(np.clip(drawn, 0.0, 1.0) * 255.0)
    return images, labels
