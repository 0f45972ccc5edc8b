"""The family and the name of a method in tables and pictures: what it declares.

An id that the registry does not know, an older one or somebody else's, still gets a sensible place.
"""

from __future__ import annotations

from fusionbench_lite import registry
from fusionbench_lite.registry import ADAPTIVE, DATA_FREE


def family(method: str, adapted: bool = False) -> str:
    """Return the family of a method id; `adapted` (did its record take steps?) decides for one that is not known."""
    entry = registry.find(method)
    if entry is not None:
        return entry.family
    return ADAPTIVE if adapted else DATA_FREE


def label(method: str) -> str:
    """Return a method's name for people, else its id."""
    entry = registry.find(method)
    return method if entry is None else entry.label
