"""Images of the 20 classification tasks: found, checked, decoded once."""

from __future__ import annotations

from fusionbench_lite.data.vision.loading import load
from fusionbench_lite.data.vision.sources import Sources
from fusionbench_lite.data.vision.splits import validation_rows
from fusionbench_lite.data.vision.stock import inventory
from fusionbench_lite.data.vision.tasks import CORRUPTIONS, VARIANTS, Task, caveats, names, task

__all__ = [
    "CORRUPTIONS", "VARIANTS", "Sources", "Task", "caveats", "inventory", "load", "names", "task", "validation_rows",
]
