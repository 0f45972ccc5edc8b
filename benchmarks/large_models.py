"""`python -m benchmarks.large_models [--methods ...] [--experts 2] [--rounds 3] [--threads 1]`: merging a 1.1 B-parameter Llama.

Writes a base and experts of TinyLlama's shapes in bfloat16 (2.2 GB each, 2 shards) to a temporary folder, merges them by every
method in a fresh process, and copies the same files in turns with it. Prints the peak resident memory, interpreter and libraries
included, beside (experts + 2) times the largest tensor plus 500 MB, and the time beside that of copying. Takes about five minutes
on two cores; needs Linux, 4 GB of memory and 16 GB of disk, which is free again afterwards (TMPDIR says where).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from fusionbench_lite.base.signals import ending_in_order
from fusionbench_lite.weights.stored.indexes import INDEX

METHODS = ("task_arithmetic", "ties_merging", "ta_dare", "breadcrumbs", "slerp", "nuslerp", "model_stock")
SLACK = 500_000_000
TIMES = 1.5
"""What task arithmetic may take, in times of copying its inputs."""


@dataclasses.dataclass(frozen=True)
class Llama:
    """The sizes of a Llama; the default ones are TinyLlama's."""

    width: int = 2048
    inner: int = 5632
    layers: int = 22
    keys: int = 256
    vocabulary: int = 32000

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by name."""
        width, inner = self.width, self.inner
        block = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (self.keys, width), "self_attn.v_proj": (self.keys, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }
        tables = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (self.vocabulary, width))
        layers = {f"model.layers.{i}.{name}.weight": shape for i in range(self.layers) for name, shape in block.items()}
        return {**tables, "model.norm.weight": (width,), **layers}

    @property
    def largest(self) -> int:
        """The bytes of the largest tensor in bfloat16."""
        return max(2 * torch.Size(shape).numel() for shape in self.shapes().values())


@dataclasses.dataclass(frozen=True)
class Job:
    """One merge of the checkpoints in a folder."""

    method: str
    folder: Path
    experts: int
    threads: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Of one method: its times and those of copying in turns with it, in seconds, and its peak resident memory in bytes."""

    seconds: list[float]
    copying: list[float]
    cpu: list[float]
    cpu_copying: list[float]
    peak: int


def write_models(folder: Path, llama: Llama, experts: int) -> None:
    """Write a base and experts, two shards and an index each."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(1 << 24, generator=generator)
    shapes = llama.shapes()
    for model in range(experts + 1):
        path = folder / ("base" if model == 0 else f"expert{model}")
        path.mkdir()
        places = {}
        for shard, names in enumerate((list(shapes)[::2], list(shapes)[1::2]), start=1):
            file = f"model-{shard:05d}-of-00002.safetensors"
            save_file({name: _drawn(pool, shapes[name], name, model) for name in names}, path / file, metadata={"format": "pt"})
            places |= dict.fromkeys(names, file)
        (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _drawn(pool: torch.Tensor, shape: tuple[int, ...], name: str, model: int) -> torch.Tensor:
    """Return a tensor of a model: that of the base, and for experts noise of a tenth of its size beside it."""
    size = torch.Size(shape).numel()

    def part(seed: int) -> torch.Tensor:
        start = (sum(name.encode()) * 7919 + seed * 104729) % (len(pool) // 2)
        rest = pool[start:]
        return rest[:size] if size <= len(rest) else rest.repeat(-(-size // len(rest)))[:size]

    base = 0.02 * part(0)
    return (base if model == 0 else base + 0.002 * part(model)).reshape(shape).bfloat16()


def merge(job: Job) -> tuple[float, float, int]:
    """Merge in a fresh process; return seconds, those of the processor, and the peak of resident memory."""
    given = [job.method, str(job.folder), str(job.experts), str(job.threads)]
    command = [sys.executable, "-m", "benchmarks.large_models_job", *given]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(job.folder / "out")
    seconds, cpu, peak = json.loads(done.stdout)
    return seconds, cpu, peak


def copy(folder: Path, experts: int) -> tuple[float, float]:
    """Return the seconds, and those of the processor, that copying the inputs takes until they are on the disk, as a merge ends."""
    target = folder / "copies"
    target.mkdir()
    start, cpu = time.perf_counter(), time.process_time()
    for file in _inputs(folder, experts):
        into = target / f"{file.parent.name}-{file.name}"
        shutil.copyfile(file, into)
        with into.open("rb") as opened:
            os.fsync(opened.fileno())
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    shutil.rmtree(target)
    return seconds, cpu


def _inputs(folder: Path, experts: int) -> Iterator[Path]:
    for name in ("base", *(f"expert{number}" for number in range(1, experts + 1))):
        yield from sorted((folder / name).glob("*.safetensors"))


def measure(folder: Path, method: str, experts: int, rounds: int, threads: int) -> Found:
    """Merge and copy in turns."""
    found = Found(seconds=[], copying=[], cpu=[], cpu_copying=[], peak=0)
    for _ in range(rounds):
        seconds, cpu = copy(folder, experts)
        found.copying.append(seconds)
        found.cpu_copying.append(cpu)
        seconds, cpu, peak = merge(Job(method, folder, experts, threads))
        found.seconds.append(seconds)
        found.cpu.append(cpu)
        found = dataclasses.replace(found, peak=max(found.peak, peak))
    return found


def line(method: str, found: Found, llama: Llama, experts: int) -> str:
    """Return a method's row: times, memory, and whether they are within what is asked for."""
    seconds, copying = statistics.median(found.seconds), statistics.median(found.copying)
    cpu, cpu_copying = statistics.median(found.cpu), statistics.median(found.cpu_copying)
    allowed = (experts + 2) * llama.largest + SLACK
    verdict = "within" if found.peak <= allowed else "OVER"
    return (
        f"{method:16} {seconds:7.1f} s  copying {copying:6.1f} s  ratio {seconds / copying:5.2f}  "
        f"(processor {cpu:.1f} and {cpu_copying:.1f} s)  peak {found.peak / 1e6:6.0f} MB of "
        f"{allowed / 1e6:.0f} ({verdict})"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns 1 where a limit is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_models", description=__doc__)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    llama, broken = Llama(), False
    with ending_in_order(), tempfile.TemporaryDirectory(prefix="large-models-") as name:
        folder = Path(name)
        needed = (2 * given.experts + 3) * 2 * sum(torch.Size(shape).numel() for shape in llama.shapes().values())
        if (free := shutil.disk_usage(folder).free) < needed:
            print(f"{folder.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: set TMPDIR", file=sys.stderr)
            return 2
        write_models(folder, llama, given.experts)
        for method in given.methods:
            found = measure(folder, method, given.experts, given.rounds, given.threads)
            print(line(method, found, llama, given.experts), flush=True)
            broken |= found.peak > (given.experts + 2) * llama.largest + SLACK
            slow = statistics.median(found.seconds) > TIMES * statistics.median(found.copying)
            broken |= method == "task_arithmetic" and slow
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
