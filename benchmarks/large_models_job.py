"""`python -m benchmarks.large_models_job METHOD FOLDER EXPERTS THREADS`: one merge of files in a process that imports nothing else.

Prints seconds, those of the processor, and the peak of resident memory in bytes as JSON. The peak is the whole process's.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from fusionbench_lite.methods.files import merge_files


def main(method: str, folder: Path, experts: int, threads: int) -> tuple[float, float, int]:
    """Merge FOLDER/base and FOLDER/expert1 ... to FOLDER/out."""
    torch.set_num_threads(threads)
    paths = {f"expert{number}": folder / f"expert{number}" for number in range(1, experts + 1)}
    start, cpu = time.perf_counter(), time.process_time()
    merge_files(method, folder / "base", paths, folder / "out")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    status = Path("/proc/self/status").read_text().splitlines()
    return seconds, cpu, next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
