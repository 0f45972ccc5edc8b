"""Sweeps of an experiment on a real Slurm: a job per run, lost jobs, jobs that are taken away, a controller that is gone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.running.test_run import _essence
from tests.support import slurm
from tests.support.commands import ROOT

pytestmark = [
    pytest.mark.slurm, pytest.mark.timeout(900),
    pytest.mark.skipif(not slurm.is_here(), reason="no cluster of .ci/slurm_local.sh; make test-slurm says how to start one"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def first(tmp_path_factory, cache) -> slurm.Sweep:
    """The sweep that nothing disturbs, two jobs at once, which find no experts: they train them together."""
    with slurm.sweep(tmp_path_factory.mktemp("first"), cache, "hydra.launcher.array_parallelism=2") as sweep:
        assert sweep.ended() == 0, sweep.text
    return sweep


@pytest.fixture
def folder(first, tmp_path) -> Path:
    """A folder with the results of that sweep."""
    shutil.copytree(first.folder / "results", tmp_path / "results", ignore=shutil.ignore_patterns("sweeps"))
    return tmp_path


def result(folder: Path, run: str) -> dict:
    """What a run determined."""
    return _essence(slurm.record_of(folder, run))


def adapting(first: slurm.Sweep, folder: Path, run: str) -> None:
    """Wait until the run has stored a checkpoint."""
    checkpoint = folder / "results" / "partial" / slurm.record_of(first.folder, run).key / "last.ckpt"
    slurm.until(checkpoint.is_file, "a checkpoint")


def test_a_job_for_every_run_and_two_at_once(first):
    assert f"{slurm.JOBS} runs, 0 with a record, {slurm.JOBS} to do" in first.text
    array = first.jobs[0].partition("_")[0]
    assert first.jobs == [f"{array}_{place}" for place in range(slurm.JOBS)]
    assert len(set(first.runs)) == slurm.JOBS
    for job, run in zip(first.jobs, first.runs, strict=True):
        assert f"run {run}: " in first.log(job)
        assert first.starts(job) == 1
        assert result(first.folder, run)
    times = slurm.states(array)
    assert {state for state, _, _ in times.values()} == {"COMPLETED"}
    assert slurm.at_once(times) == 2
    assert (first.folder / "results" / "tables" / "mini" / "first_look" / "table.csv").exists()


def test_one_job_after_the_other_while_the_controller_is_restarted(first, cache, folder):
    """Their records are there, their notes are not: the jobs find them."""
    slurm.forget(folder, first.runs[:3], made=False)
    with slurm.sweep(folder, cache, "hydra.launcher.array_parallelism=1") as sweep:
        slurm.until(lambda: sweep.starts(sweep.jobs[0]) > 0, "the first job to begin")
        subprocess.run([ROOT / ".ci" / "slurm_local.sh", "restart-ctld", "10"], check=True, capture_output=True, timeout=120)
        assert sweep.ended() == 0, sweep.text
        assert f"{slurm.JOBS} runs, 2 with a record, 3 to do" in sweep.text
        assert [sweep.starts(job) for job in sweep.jobs] == [1, 1, 1]
        times = slurm.states(sweep.jobs[0].partition("_")[0])
        assert {state for state, _, _ in times.values()} == {"COMPLETED"}
        assert slurm.at_once(times) == 1


def test_a_job_that_is_killed_is_named_and_sent_again_alone(first, cache, folder):
    slow, quick = first.runs[-1], first.runs[0]
    slurm.forget(folder, [quick, slow], made=True)
    with slurm.sweep(folder, cache, "hydra.launcher.array_parallelism=2") as sweep:
        lost = sweep.jobs[sweep.runs.index(slow)]
        adapting(first, folder, slow)
        slurm.kill(lost)
        assert sweep.ended() == 1
        assert "1 of 2 runs have no record though their jobs ended:" in sweep.text
        assert f"run={slow} method=" in sweep.text
        assert f"log: {sweep.place / '.submitit' / lost / lost}_0_log.err" in sweep.text
        assert result(folder, quick) == result(first.folder, quick)  # it was waited for
    with slurm.sweep(folder, cache) as again:
        assert again.ended() == 0, again.text
        assert f"{slurm.JOBS} runs, {slurm.JOBS - 1} with a record, 1 to do" in again.text
        assert again.runs == [slow]
        assert "going on after step" in again.log(again.jobs[0])
    assert result(folder, slow) == result(first.folder, slow)


def test_a_job_that_is_taken_away_goes_on_to_the_same_result(first, cache, folder):
    run = first.runs[-1]
    slurm.forget(folder, [run], made=True)
    with slurm.sweep(folder, cache) as sweep:
        (job,) = sweep.jobs
        adapting(first, folder, run)
        slurm.said("scancel", "--signal=USR2", job)
        assert sweep.ended() == 0, sweep.text
        assert sweep.starts(job) == 2
        assert "Restarts=1 " in slurm.said("scontrol", "show", "job", job)
        assert "the cluster wants the job back: step " in sweep.log(job)
        assert "going on after step " in sweep.log(job)
    assert result(folder, run) == result(first.folder, run)


def test_a_job_that_is_refused_more_time_says_so(first, cache, folder):
    """With a limit of 10 minutes and none to spare submitit takes the signal for the time limit, and gives up."""
    run = first.runs[-1]
    slurm.forget(folder, [run], made=True)
    extra = ("hydra.launcher.timeout_min=10", "hydra.launcher.max_num_timeout=0")
    with slurm.sweep(folder, cache, *extra) as sweep:
        (job,) = sweep.jobs
        adapting(first, folder, run)
        slurm.said("scancel", "--signal=USR2", job)
        assert sweep.ended() == 1
        assert "Job not requeued because: timed-out too many times" in sweep.text
        slurm.until(lambda: slurm.states(job)[job][0] == "COMPLETED", "the end in the accounts")  # which says nothing
    assert list(folder.glob("results/partial/*/last.ckpt"))  # from which the same command goes on
