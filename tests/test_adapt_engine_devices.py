"""Several processes share the tasks and learn what one process learns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

JOB = str(Path(__file__).parent / "engine_job.py")


@pytest.mark.parametrize("method", ["adamerging_layerwise", "adarank_cart"])
def test_two_processes_agree_with_one(tmp_path, method):
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    subprocess.run([sys.executable, JOB, one, method, "25"], check=True, capture_output=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launcher, JOB, two, method, "25"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = torch.load(one, weights_only=False), torch.load(two, weights_only=False)
    for name, expected in first["coefficients"].items():
        assert torch.allclose(second["coefficients"][name], expected, rtol=0, atol=1e-5), name
    for name, mask in first["masks"].items():
        assert torch.equal(second["masks"][name], mask)
    assert second["losses"] == pytest.approx(first["losses"], abs=1e-5)
    assert second["accuracies"].keys() == first["accuracies"].keys()
    for step, accuracies in first["accuracies"].items():
        assert second["accuracies"][step] == pytest.approx(accuracies, abs=0.02)
    assert (tmp_path / "two.pt").exists()
