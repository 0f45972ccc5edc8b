"""Classification data: files of the user's own, and the embedded tasks that are drawn by code."""

from __future__ import annotations

from fusionbench_lite.data.arrays import Originals, TaskData, fingerprint, load_task, normalise, originals, prepare, reads_files

__all__ = ["Originals", "TaskData", "fingerprint", "load_task", "normalise", "originals", "prepare", "reads_files"]
