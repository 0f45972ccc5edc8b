"""One merge in a process of its own, by this package or by mergekit: seconds and peak memory as JSON.

Run by `benchmarks.against_mergekit`, for mergekit with the interpreter of its own environment, which has nothing of this package.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def mergekit(job: dict[str, Any]) -> Callable[[], object]:
    """Return mergekit's merge of a configuration."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    configuration = MergeConfiguration.model_validate(job["configuration"])
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    return lambda: run_merge(configuration, job["out"], options)


def ours(job: dict[str, Any]) -> Callable[[], object]:
    """Return the merge of this package."""
    from fusionbench_lite.methods.files import merge_files
    from fusionbench_lite.registry import get

    get(job["method"])  # imports the methods
    return lambda: merge_files(job["method"], job["base"], job["experts"], job["out"], **job["settings"])


def status(field: str) -> int:
    """Return a field of this process's status in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Do the job that standard input describes."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    call = {"mergekit": mergekit, "ours": ours}[job["who"]](job)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to the present VmRSS
    resident = status("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"wall": wall, "cpu": cpu, "resident": resident, "peak": status("VmHWM")}))


if __name__ == "__main__":
    main()
