"""Best and second of a column, compared as printed."""

from __future__ import annotations

import math
from collections.abc import Iterable

BEST, SECOND = 1, 2


def places(printed: Iterable[float], *, higher: bool) -> list[int]:
    """Return BEST, SECOND or 0 for each number, 0 for nan. Equal ones share a place; of fewer than two none has one."""
    values = list(printed)
    present = [value for value in values if not math.isnan(value)]
    if len(present) < 2:
        return [0] * len(values)
    place = dict(zip(sorted(set(present), reverse=higher), (BEST, SECOND), strict=False))
    return [0 if math.isnan(value) else place.get(value, 0) for value in values]
