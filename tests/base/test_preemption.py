"""USR2 where a launcher answers it: at once outside of steps, after the checkpoint within, and never as an Exception."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from fusionbench_lite.base import preemption
from tests.adaptation.test_adapt_engine_resume import same
from tests.support.engine_job import job

USR2, STEPS = signal.SIGUSR2, 9


class UncompletedJobError(RuntimeError):
    """As the launcher's."""


@pytest.fixture
def launcher(monkeypatch):
    """A launcher that answers USR2 by leaving with status 3, or by the error that is put into the list."""
    errors: list[Exception] = []

    def answer(number, frame):
        if errors:
            raise errors.pop()
        raise SystemExit(3)

    before = signal.signal(USR2, answer), signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr(preemption, "_answer", None)
    yield errors
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(USR2, before[0])
    signal.signal(signal.SIGALRM, before[1])
    preemption._waiting, preemption._depth = None, 0


def signalled() -> None:
    os.kill(os.getpid(), USR2)
    time.sleep(0.01)  # a bytecode after it


def test_without_a_launcher_the_signal_stays_what_it_was():
    assert not preemption.install()
    assert signal.getsignal(USR2) is signal.SIG_DFL


def test_outside_of_steps_the_launcher_answers_at_once(launcher):
    assert preemption.install()
    with pytest.raises(SystemExit):
        signalled()


def test_installed_twice_it_still_answers(launcher):
    assert preemption.install()
    assert preemption.install(10)
    with pytest.raises(SystemExit):
        signalled()


def test_what_is_held_is_finished_first(launcher):
    preemption.install()
    done = []
    with pytest.raises(SystemExit):
        with preemption.held(), preemption.held():
            signalled()
            assert preemption.is_wanted()
            done.append("inner")
    assert done == ["inner"]
    assert not preemption.is_wanted()


def test_patience_ends(launcher):
    preemption.install(0.1)
    start = time.monotonic()
    with pytest.raises(SystemExit):
        with preemption.held():
            signalled()
            time.sleep(10)
    assert time.monotonic() - start < 5


def test_what_the_launcher_refuses_is_no_exception_on_its_way(launcher):
    """A job that ran into its limit too often: nothing between the signal and the end of the run may take it for a flaw."""
    preemption.install()
    launcher.append(UncompletedJobError("timed-out too many times"))
    with pytest.raises(preemption.Abandoned) as left:
        try:
            signalled()
        except Exception:
            pytest.fail("taken for a flaw of what was going on")
    assert isinstance(left.value.error, UncompletedJobError)


def test_an_error_within_is_not_replaced_by_the_answer(launcher):
    preemption.install()
    with pytest.raises(ValueError, match="of the step"):
        with preemption.held():
            signalled()
            raise ValueError("of the step")


@pytest.mark.parametrize("stop", [1, 6])
def test_an_adaptation_is_saved_where_the_signal_came_and_goes_on_to_the_same_bits(launcher, tmp_path, stop):
    """1: before the first regular checkpoint, 6: between two."""
    preemption.install()
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(SystemExit):
        job("adarank_cart", STEPS, checkpoint, stop, signalled)
    saved = torch.load(checkpoint, weights_only=True)
    assert len(saved["adaptation"]["history"]["losses"]) == stop  # a batch is read while the step before it runs
    assert same(job("adarank_cart", STEPS, checkpoint), job("adarank_cart", STEPS))
