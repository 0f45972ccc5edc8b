"""A run killed with SIGKILL and started again ends with the same bits as an undisturbed one."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.support.engine_job import job

STEPS = 37


def _killed(checkpoint: Path, method: str, stop: int) -> int:
    """Run the job in a process of its own, which kills itself when step `stop` is about to begin; returns its exit status."""
    out = checkpoint.parent / "out.pt"
    job = [sys.executable, str(ROOT / "tests" / "support" / "engine_job.py"), out, method, STEPS, checkpoint, stop]
    status = subprocess.run([*map(str, job)], check=False, capture_output=True).returncode
    assert not out.exists()
    return status


def same(first: Any, second: Any) -> bool:
    """Equality to the last bit of nested containers of tensors."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@pytest.fixture(scope="module")
def undisturbed():
    """The outcome of a run that nothing disturbs, made once per method."""
    return functools.cache(lambda method: job(method, STEPS))


# 3: before the first checkpoint; 10: at an evaluation, after which step 12 saves; 29: between evaluation and save.
CASES = [
    ("adarank_cart", [10]), pytest.param("adarank_cart", [3, 10, 29], marks=pytest.mark.slow),
    pytest.param("surgery", [13, 30], marks=pytest.mark.slow),
]
"""Processes are killed here, a few because each start takes seconds; test_adapt_resume.py has every method."""


@pytest.mark.parametrize(("method", "stops"), CASES, ids=str)
def test_killed_and_started_again(undisturbed, tmp_path, method, stops):
    checkpoint = tmp_path / "last.ckpt"
    for stop in stops:
        assert _killed(checkpoint, method, stop) == -signal.SIGKILL
        assert checkpoint.exists() == (stop >= 4)
    assert same(job(method, STEPS, checkpoint), undisturbed(method))


def test_masks_and_coefficients_do_move(undisturbed):
    expected = undisturbed("adarank_ta")
    assert expected["losses"][-1] < expected["losses"][0]
    assert list(expected["values"]) == [0, 10, 20, 30, STEPS]
    assert not all(mask.all() for mask in expected["masks"].values())


def test_a_finished_checkpoint_is_not_trained_further(undisturbed, tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    job("adarank_cart", 36, checkpoint)
    losses = job("adarank_cart", 36, checkpoint)["losses"]
    assert len(losses) == 36
    assert same(losses, undisturbed("adarank_cart")["losses"][:36])
