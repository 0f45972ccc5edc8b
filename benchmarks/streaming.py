"""Merging files to files: peak resident memory and seconds, on eight checkpoints of ViT-B/32 size in a temporary directory."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.command import isolated
from benchmarks.measure import CLOCKS, Memory
from benchmarks.merging_problem import CASES, draw, expert
from benchmarks.problem import Size
from fusionbench_lite.methods.files import merge_files

METHODS = ("task_arithmetic", "ties_merging")
NEEDED = 5 << 30
"""Bytes free in the temporary directory for the checkpoints and one result."""

LIMIT = 1.5 * (1 << 30)


@dataclasses.dataclass(frozen=True)
class StreamingJob:
    """A method on the checkpoints in a folder, in its own process."""

    method: str
    folder: Path
    threads: int
    clock: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streamed:
    """Peak resident memory of the process in bytes, interpreter and libraries included; `resident` of it before the merge.

    `seconds` and `cpu` of the merge, wall and processor time, and `on_clock`, the one of the job's clock, on which is also
    `reading`: summing up every tensor of the files once, before and after the merge.
    """

    peak: int
    resident: int
    seconds: float
    cpu: float
    on_clock: float
    reading: tuple[float, ...]
    inputs: int


def streaming(size: Size, methods: tuple[str, ...], threads: int, clock: str) -> dict[str, Streamed] | str:
    """Measure every method, or say why that is not possible here."""
    with tempfile.TemporaryDirectory(prefix="merging-bench-") as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < NEEDED:
            return f"streaming is skipped: {folder.parent} has {free / 2**30:.1f} GiB free, {NEEDED >> 30} GiB are needed"
        isolated(write_checkpoints, (size, folder, threads))
        return {method: isolated(measure_streaming, StreamingJob(method, folder, threads, clock)) for method in methods}


def write_checkpoints(given: tuple[Size, Path, int]) -> None:
    """Write the pretrained weights and the experts to a folder, one file each."""
    size, folder, threads = given
    torch.set_num_threads(threads)
    whole = next(case for case in CASES if case.others)
    base, _ = draw(dataclasses.replace(size, tasks=0), whole)
    save_file(base, folder / "pretrained.safetensors")
    for task in range(size.tasks):
        save_file(expert(base, task), folder / f"expert_{task}.safetensors")


def measure_streaming(job: StreamingJob) -> Streamed:
    """Merge the files of a folder in this process; call it in a fresh one, because the peak is the process's."""
    torch.set_num_threads(job.threads)
    pretrained = job.folder / "pretrained.safetensors"
    experts = {path.stem: path for path in sorted(job.folder.glob("expert_*.safetensors"))}
    files = [pretrained, *experts.values()]
    memory = Memory(torch.device("cpu"))
    out = job.folder / "merged"
    reading = [_read(files, job.clock)]
    resident = memory.start()
    wall, cpu = time.perf_counter(), time.process_time()
    merge_files(job.method, pretrained, experts, out)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = memory.peak()
    reading.append(_read(files, job.clock))
    shutil.rmtree(out)
    size = sum(file.stat().st_size for file in files)
    return Streamed(
        peak=peak, resident=resident, seconds=wall, cpu=cpu, on_clock=cpu if job.clock == "cpu" else wall, reading=tuple(reading),
        inputs=size,
    )


def _read(files: list[Path], clock: str) -> float:
    start = CLOCKS[clock]()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                opened.get_tensor(name).sum()
    return CLOCKS[clock]() - start
