"""Peak resident memory of one merge, measured in a process of its own: `python -m tests.memory_job JSON`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import fusionbench_lite as fbl
from benchmarks.measure import Memory
from tests.helpers import State, rng
from tests.merging import arguments


def draw(shapes: dict[str, list[int]], seed: int, size: float) -> State:
    g = rng(seed)
    return {name: size * torch.randn(shape, generator=g) for name, shape in shapes.items()}


def expert(base: State, seed: int) -> State:
    noise = draw({name: list(value.shape) for name, value in base.items()}, seed, 0.01)
    return {name: value.add_(base[name]) for name, value in noise.items()}


def call(method: str, base: Any, experts: Any, out: str | None, given: dict[str, Any], **extra: Any) -> fbl.Merged | None:
    if out is None:
        return fbl.merge(method, base, experts, **given)
    fbl.merge_files(method, base, experts, out, **given, **extra)
    return None


def warm_up(method: str, folder: Path | None, given: dict[str, Any]) -> None:
    """Import and allocate what any merge needs, whatever its size."""
    base = draw({"encoder.attn.weight": [300, 300], "encoder.attn.bias": [8]}, 0, 0.02)
    experts = {f"task{t}": expert(base, 1 + t) for t in range(2)}
    call(method, base, experts, None if folder is None else str(folder / "warm"), arguments(method, base, list(experts), given))


def main(job: dict[str, Any]) -> dict[str, int]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    memory = Memory(torch.device("cpu"))
    method, given = job["method"], job.get("given", {})
    if "folder" in job:
        folder = Path(job["folder"])
        paths = {path.name: str(path) for path in sorted((folder / "experts").iterdir())}
        out = folder / "out" / method
        warm_up(method, folder, given)
        held = memory.start()
        call(method, str(folder / "base"), paths, str(out), given, shard_bytes=job["shard_bytes"])
        return {"peak": memory.peak() - held, "stored": 0}
    base = draw(job["shapes"], 0, 0.02)
    experts = {f"task{t}": expert(base, 1 + t) for t in range(job["tasks"])}
    given = arguments(method, base, list(experts), given)
    warm_up(method, None, job.get("given", {}))
    held = memory.start()
    merged = call(method, base, experts, None, given)
    assert merged is not None
    return {"peak": memory.peak() - held, "stored": merged.storage["shared"] + merged.storage["per_task"]}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
