"""The published numbers of the four papers, as printed, and the flags of their audit: results/published, read and checked."""

from fusionbench_lite.tables.published.reading import Flag, Number, PublishedTable, flags, flags_of, number_of, numbers, tables

__all__ = ["Flag", "Number", "PublishedTable", "flags", "flags_of", "number_of", "numbers", "tables"]
