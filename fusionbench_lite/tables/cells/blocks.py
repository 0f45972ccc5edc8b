"""Tables wider or longer than a page as blocks that fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def blocks(groups: Iterable[range], sizes: Sequence[int], room: int) -> list[list[int]]:
    """Return the places of each block: neighbours whose sizes fit into the room, groups whole where they fit on their own.

    A place that is larger than the room is a block of its own.
    """
    found: list[list[int]] = []
    used = 0
    for group in groups:
        whole = sum(sizes[place] for place in group)
        fresh = bool(found) and used + whole > room and whole <= room
        for place in group:
            if not found or fresh or used + sizes[place] > room:
                found.append([])
                used, fresh = 0, False
            found[-1].append(place)
            used += sizes[place]
    return found
