"""What a run needs before it can start: files and datasets, where they are or where to get them."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """One thing that a run needs.

    `what` is its kind ("expert", "pretrained", "head", "text tower", "test images", "training images"), `task` whose it is,
    None for all. `where` says where to get it, "repo:file" or an address, `path` where it is or has to be put. `nbytes` is
    its size as far as it is known; `downloadable` says that a run brings it by itself: it fetches it, or makes it of other
    things where `made` is set. `arrived` is how many bytes a download that was stopped has left, which the next one continues.
    """

    what: str
    task: str | None
    where: str
    path: str
    nbytes: int | None
    present: bool
    note: str = ""
    downloadable: bool = True
    arrived: int = 0
    made: bool = False


@dataclasses.dataclass(frozen=True)
class Needs:
    """Everything that a run needs, what a reader of its results should know, and lines that bring what no run brings."""

    items: tuple[Need, ...] = ()
    caveats: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def size_text(nbytes: int | None) -> str:
    """Return a number of bytes as people write it."""
    if nbytes is None:
        return "?"
    size = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def bytes_of(text: Any) -> int:
    """Return the number of bytes that a size is, as 5GB or 500MB; raises ValueError for what is none."""
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    size = 0.0 if match is None else float(match[1]) * _UNITS[match[2].upper()]
    if not 1 <= size < math.inf:
        raise ValueError
    return int(size)
