"""Peak resident memory of merges, measured in a process of its own: `python -m tests.support.memory_job JSON`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import fusionbench_lite as fbl
from benchmarks.measure import Memory
from tests.support.helpers import State, rng


def draw(shapes: dict[str, list[int]], seed: int, size: float) -> State:
    g = rng(seed)
    return {name: size * torch.randn(shape, generator=g) for name, shape in shapes.items()}


def expert(base: State, seed: int) -> State:
    noise = draw({name: list(value.shape) for name, value in base.items()}, seed, 0.01)
    return {name: value.add_(base[name]) for name, value in noise.items()}


def call(method: str, base: Any, experts: Any, out: Path | None, given: dict[str, Any], **extra: Any) -> fbl.Merged | None:
    if out is None:
        return fbl.merge(method, base, experts, **given)
    fbl.merge_files(method, base, experts, out, **given, **extra)
    return None


def warm_up(methods: list[str], folder: Path | None) -> None:
    """Import and allocate what any merge needs, whatever its size."""
    base = draw({"encoder.attn.weight": [300, 300], "encoder.attn.bias": [8]}, 0, 0.02)
    experts = {f"task{t}": expert(base, 1 + t) for t in range(2)}
    for method in methods:
        call(method, base, experts, None if folder is None else folder / "warm" / method, {})


def main(job: dict[str, Any]) -> dict[str, list[int]]:
    """Return, for each of `methods`, the peak beyond what is held before, and the bytes of the result in memory.

    With a `folder` the merge is from its `base` and `experts` to its `out/METHOD`, else from tensors of `shapes`.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    memory, found = Memory(torch.device("cpu")), {}
    folder = Path(job["folder"]) if "folder" in job else None
    warm_up(job["methods"], folder)
    if folder is not None:
        paths = {path.stem: str(path) for path in sorted((folder / "experts").iterdir())}
        for method in job["methods"]:
            held = memory.start()
            call(method, str(folder / "base"), paths, folder / "out" / method, {}, shard_bytes=job["shard_bytes"])
            found[method] = [memory.peak() - held, 0]
        return found
    base = draw(job["shapes"], 0, 0.02)
    experts = {f"task{t}": expert(base, 1 + t) for t in range(job["tasks"])}
    for method in job["methods"]:
        held = memory.start()
        merged = call(method, base, experts, None, {})
        assert merged is not None
        found[method] = [memory.peak() - held, merged.storage["shared"] + merged.storage["per_task"]]
        del merged
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
