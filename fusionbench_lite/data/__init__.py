"""Examples of tasks: files of the user's own, the embedded tasks that are drawn by code, and published data sets."""

from __future__ import annotations

from fusionbench_lite.data.arrays import (
    Columns,
    Originals,
    Stored,
    TaskData,
    decode_ahead,
    fingerprint,
    lengths_of,
    load_task,
    normalise,
    originals,
    reads_files,
)

__all__ = [
    "Columns", "Originals", "Stored", "TaskData", "decode_ahead", "fingerprint", "lengths_of", "load_task", "normalise",
    "originals", "reads_files",
]
