"""Pickled checkpoints, read without running what they say."""

from fusionbench_lite.weights.pickles.reading import MAGIC, read_pickled

__all__ = ["MAGIC", "read_pickled"]
