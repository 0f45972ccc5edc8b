"""A run killed with SIGKILL and started again ends with the same bits as an undisturbed one."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.conftest import ROOT

JOB = str(ROOT / "tests" / "support" / "engine_job.py")
STEPS = 37


def _run(*arguments: object) -> int:
    return subprocess.run([sys.executable, JOB, *map(str, arguments)], check=False, capture_output=True).returncode


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
def undisturbed(tmp_path_factory):
    """The outcome of a run that nothing disturbs, made once per method."""
    outcomes: dict[str, Any] = {}

    def of(method: str) -> Any:
        if method not in outcomes:
            out = tmp_path_factory.mktemp("undisturbed") / "out.pt"
            assert _run(out, method, STEPS) == 0
            outcomes[method] = torch.load(out, weights_only=False)
        return outcomes[method]

    return of


# 3: before the first checkpoint; 10: at an evaluation, after which step 12 saves; 29: between evaluation and save.
CASES = [("adarank_cart", [3, 10, 29]), ("surgery", [13, 30])]
"""Processes are killed here, a few because each start takes seconds; test_adapt_resume.py has every method."""


@pytest.mark.parametrize(("method", "stops"), CASES, ids=str)
def test_killed_and_started_again(undisturbed, tmp_path, method, stops):
    out, checkpoint = tmp_path / "out.pt", tmp_path / "last.ckpt"
    for stop in stops:
        assert _run(out, method, STEPS, checkpoint, stop) == -signal.SIGKILL
        assert not out.exists()
        assert checkpoint.exists() == (stop >= 4)
    assert _run(out, method, STEPS, checkpoint) == 0
    assert same(torch.load(out, weights_only=False), undisturbed(method))


def test_masks_and_coefficients_do_move(undisturbed):
    expected = undisturbed("adarank_ta")
    assert expected["losses"][-1] < expected["losses"][0]
    assert list(expected["values"]) == [0, 10, 20, 30, STEPS]
    assert not all(mask.all() for mask in expected["masks"].values())


def test_a_finished_checkpoint_is_not_trained_further(undisturbed, tmp_path):
    out, checkpoint = tmp_path / "out.pt", tmp_path / "last.ckpt"
    assert _run(out, "adarank_cart", 36, checkpoint) == 0
    assert _run(out, "adarank_cart", 36, checkpoint) == 0
    losses = torch.load(out, weights_only=False)["losses"]
    assert len(losses) == 36
    assert same(losses, undisturbed("adarank_cart")["losses"][:36])
