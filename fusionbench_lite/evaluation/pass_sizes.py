"""How many examples run at once in an evaluation, for what runs them and for plans. Never imports torch."""

from __future__ import annotations

PIXELS = 64 * 224 * 224
"""Pixels of one pass on a processor: more do not run faster there."""
PLACES = 1 << 14
"""Places of one pass on a processor, padding included, where examples have unequal lengths."""
MOST = {"cpu": 250, "cuda": 1024}


def of_images(pixels: int) -> int:
    """Return how many images of so many pixels a processor runs at once."""
    return max(1, min(MOST["cpu"], PIXELS // max(pixels, 1)))


def of_places(places: int, longest: int, device: str = "cpu") -> int:
    """Return how many examples of at most `longest` places run at once where a pass holds so many places."""
    return max(1, min(places // max(longest, 1), MOST.get(device, MOST["cpu"])))
