"""Several processes share the tasks and learn what one process learns."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.support.engine_job import job

JOB = str(ROOT / "tests" / "support" / "engine_job.py")


@pytest.mark.parametrize(
    ("method", "processes"),
    [
        ("traditional_mtl", 2), ("map", 2), pytest.param("adamerging_layerwise", 2, marks=pytest.mark.slow),
        pytest.param("adarank_cart", 4, marks=pytest.mark.slow),
    ],
)
def test_processes_agree_with_one(tmp_path, method, processes):
    """Of four processes one has no task. Multi-task learning limits the norm of the gradient of all tasks."""
    more = tmp_path / "more.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*launcher, JOB, more, method, "25"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = job(method, 25), torch.load(more, weights_only=False)
    for name, expected in first["coefficients"].items():
        assert torch.allclose(second["coefficients"][name], expected, rtol=0, atol=1e-5), name
    for name, expected in first["final"].items():
        assert torch.allclose(second["final"][name], expected, rtol=0, atol=1e-5), name
    for name, mask in first["masks"].items():
        assert torch.equal(second["masks"][name], mask)
    assert second["losses"] == pytest.approx(first["losses"], abs=1e-5)
    assert second["values"].keys() == first["values"].keys()
    for step, values in first["values"].items():
        assert second["values"][step] == pytest.approx(values, abs=0.02)
