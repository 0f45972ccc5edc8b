"""How much memory a merge takes beyond its inputs: a few tensors, not models."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from fusionbench_lite import registry
from tests.conftest import ROOT
from tests.support.memory_job import draw, expert

pytestmark = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="reads the peak from /proc (Linux)")

MIB = 1 << 20
TASKS = 8
SHARD = 8 * MIB
SLACK = 24 * MIB
"""What the allocator keeps, and code that is loaded on the first call."""


UNFRAGMENTED = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10)}
"""Has glibc give freed tensors back at once. Without it the peak also holds the holes in its heap, up to as much again."""


def measure(job: dict, **environment: str) -> dict[str, list[int]]:
    """Run tests.support.memory_job in a process of its own, whose peak is that of the merge."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.memory_job", json.dumps(job)], cwd=ROOT, check=False, capture_output=True, text=True,
        timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check_from_files_to_files(folder: Path, methods: list[str], shape: tuple[int, int], shard: int, blocks: int = 0) -> None:
    """Write a base and eight experts of twelve tensors, merge them by each method; the files are removed."""
    (folder / "experts").mkdir()
    (folder / "base").mkdir()
    base = draw({f"encoder.{layer}.weight": list(shape) for layer in range(12)}, 0, 0.02)
    save_file(base, folder / "base" / "model.safetensors")
    for task in range(TASKS):
        save_file(expert(base, 1 + task), folder / "experts" / f"task{task}.safetensors")
    del base
    try:
        found = measure({"methods": methods, "folder": str(folder), "shard_bytes": shard}, **UNFRAGMENTED)
        for method in methods:
            assert sum(file.stat().st_size for file in (folder / "out" / method).rglob("*.safetensors")) > 48 * math.prod(shape)
    finally:
        shutil.rmtree(folder)
    tensor = 4 * math.prod(shape)
    inputs = (TASKS + 1) * 12 * tensor
    too_much = {}
    for method, (peak, _) in found.items():
        # One tensor of the base and of every expert, three of intermediate results, a shard and its bytes.
        allowed = (TASKS + 4) * tensor + 2 * shard + SLACK + blocks
        if registry.get(method).per_task:  # the merged vector and the masks of all tensors
            allowed += 12 * (tensor + TASKS * tensor // 32)
        assert allowed < 0.6 * inputs
        if peak > allowed:
            too_much[method] = f"{peak / MIB:.0f} MiB, {allowed / MIB:.0f} are allowed, inputs {inputs / MIB:.0f}"
    assert not too_much


@pytest.mark.parametrize(
    ("rows", "methods"),
    [
        (512, ["ties_merging", "emr_merging"]),
        pytest.param(1024, ["task_arithmetic", "ties_merging", "breadcrumbs", "emr_merging", "tall_masks"], marks=pytest.mark.slow),
    ],
)
def test_from_files_to_files(tmp_path, rows, methods):
    check_from_files_to_files(tmp_path, methods, (rows, 768), SHARD)


@pytest.mark.slow
def test_from_files_to_files_in_many_passes(tmp_path):
    # Blocks have 2^19 entries: a dozen results of theirs in float64, whatever the size of the model.
    check_from_files_to_files(tmp_path, ["pcb_merging"], (768, 512), MIB, blocks=12 * 4 * MIB)


def check_in_memory(methods: list[str], shape: tuple[int, int], tasks: int, allowed: int) -> None:
    """Compare the peak beyond inputs and output with so many float32 tensors of the largest shape."""
    shapes = {"encoder.attn.a.weight": list(shape), "encoder.attn.b.weight": list(shape), "bias": [1000]}
    found = measure({"methods": methods, "tasks": tasks, "shapes": shapes}, **UNFRAGMENTED)
    extra = {method: (peak - result) / (4 * math.prod(shape)) for method, (peak, result) in found.items()}
    assert max(extra.values()) <= allowed, extra


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [2, 8])
def test_in_memory(tasks):
    methods = ["task_arithmetic", "ties_merging", "magmax", "consensus_ta", "breadcrumbs", "weight_averaging", "ta_dare"]
    check_in_memory(methods, (1600, 1000), tasks, tasks + 4)


EIGENPROBLEM = 10
"""What a float64 eigenproblem of a matrix four times as long as wide takes in units of its float32, however many tasks
there are: the matrix and the singular vectors of the long side, two each; Gram matrix, eigenvectors and LAPACK's copies
of both, half of one each; the task vector, the base and the sum. From T = 6 on that is less than T + 4."""


@pytest.mark.parametrize("tasks", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_in_memory_with_decompositions(tasks):
    check_in_memory(["tsv_m", "cart", "iso_c", "iso_cts", "star"], (2400, 600), tasks, max(tasks + 4, EIGENPROBLEM))
