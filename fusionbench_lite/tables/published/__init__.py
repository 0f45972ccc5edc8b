"""The papers' numbers as data (`results/published/`): read, checked, flagged. Neither pandas nor torch is imported."""

from __future__ import annotations

from fusionbench_lite.tables.published.lines import Flag, Number, PublishedTable
from fusionbench_lite.tables.published.reading import corrected, flags, flags_of, load, numbers, read, tables

__all__ = ["Flag", "Number", "PublishedTable", "corrected", "flags", "flags_of", "load", "numbers", "read", "tables"]
