"""Sweeps on the cluster that .ci/slurm_local.sh starts: sent, watched and disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fusionbench_lite.tables import records
from tests.support.commands import ROOT

LIMIT = 240.0
"""Seconds that anything may take: the machine may be busy."""
STEPS = 120
LINE = (
    "-m", "experiment=mini/first_look", "tasks=[digits,signs,land]", f"steps={STEPS}", "limit=48", "trainer.checkpoint_every=5",
    "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}", "hydra/launcher=submitit_slurm",
    "hydra.launcher.mem_gb=1", "hydra.launcher.cpus_per_task=1", "hydra.launcher.gpus_per_node=null",
)
JOBS = 5
"""Runs of that experiment, the last of which adapts."""


def is_here() -> bool:
    """Say whether the cluster of .ci/slurm_local.sh runs and is that of this environment."""
    ours = "SLURM_LOCAL_DIR" in os.environ and "SLURM_CONF" in os.environ
    return ours and subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; fails with what was waited for."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"waited {LIMIT:.0f} s for {what}"
        time.sleep(0.2)


def said(*line: str) -> str:
    """Return what a command of Slurm says."""
    return subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout


class Sweep:
    """The sweep of LINE in a folder, whose results may hold what was done before."""

    def __init__(self, folder: Path, cache: Path, *extra: str) -> None:
        environment = {**os.environ, "FUSIONBENCH_LITE_CACHE": str(cache), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        environment.pop("OMP_NUM_THREADS", None)  # the jobs take their own number
        self.folder, self.before = folder, set(folder.glob("results/sweeps/*/*/jobs.txt"))
        self.output = folder / f"driver-{len(self.before)}.txt"
        with self.output.open("w") as output:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "fusionbench_lite", *LINE, *extra], cwd=folder, env=environment, stdout=output,
                stderr=subprocess.STDOUT,
            )

    def ended(self) -> int:
        """Wait for the end and return the exit status."""
        until(lambda: self.driver.poll() is not None, "the sweep to end")
        return int(self.driver.returncode)

    @property
    def text(self) -> str:
        """What the sweep has said so far."""
        return self.output.read_text()

    @property
    def place(self) -> Path:
        """Where the sweep keeps its jobs."""
        until(lambda: bool(self._new()), "jobs.txt")
        (file,) = self._new()
        return file.parent

    def _new(self) -> set[Path]:
        return set(self.folder.glob("results/sweeps/*/*/jobs.txt")) - self.before

    @property
    def runs(self) -> list[str]:
        """The ids of the runs that were sent, in order."""
        return re.findall(r"\trun=([0-9a-f]{16})\t", (self.place / "jobs.txt").read_text())

    @property
    def jobs(self) -> list[str]:
        """The jobs that Slurm took, in order: A_0, A_1 and so on, or A where there is one."""
        until(lambda: len(list(self.place.glob(".submitit/*/*_submitted.pkl"))) == len(self.runs), "the jobs to be submitted")
        found = {path.parent.name for path in self.place.glob(".submitit/*/*_submitted.pkl")}
        return sorted(found, key=lambda job: [int(part) for part in job.split("_")])

    def log(self, job: str, kind: str = "err") -> str:
        """What a job has written, in all its starts."""
        path = self.place / ".submitit" / job / f"{job}_0_log.{kind}"
        return path.read_text() if path.exists() else ""

    def starts(self, job: str) -> int:
        """How often a job began."""
        return self.log(job, "out").count("Starting with JobEnvironment")

    def stopped(self) -> None:
        """End what still goes on."""
        if self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()
        subprocess.run(["scancel", f"--user={os.getuid()}"], check=False, capture_output=True)
        until(lambda: not said("squeue", "--noheader"), "the queue to be empty")


@contextlib.contextmanager
def sweep(folder: Path, cache: Path, *extra: str) -> Iterator[Sweep]:
    """Start a sweep, and leave an empty queue in any case."""
    started = Sweep(folder, cache, *extra)
    try:
        yield started
    finally:
        started.stopped()


def record_of(folder: Path, run: str) -> records.Record:
    """Return the record to which the note of a run leads."""
    note = json.loads((folder / "results" / "runs" / f"{run}.json").read_text())
    record = records.find(folder / "results", note["key"])
    assert record is not None, note
    return record


def forget(folder: Path, runs: list[str], *, made: bool) -> None:
    """Remove the notes of runs, and their records too where they are to be `made` again."""
    for run in runs:
        record = record_of(folder, run)
        (folder / "results" / "runs" / f"{run}.json").unlink()
        if made:
            shutil.rmtree(record.path)


def states(job: str) -> dict[str, tuple[str, str, str]]:
    """Return state, start and end of a job, or of every job of an array, as Slurm accounts for them.

    Accounts of jobs that ended are waited for: a controller that was away tells them late.
    """
    found: dict[str, tuple[str, str, str]] = {}

    def ended() -> bool:
        lines = said("sacct", "-X", "-n", "-P", "-o", "JobID,State,Start,End", "-j", job).split()
        found.update({fields[0]: (fields[1], fields[2], fields[3]) for fields in (line.split("|") for line in lines)})
        return all(state not in ("RUNNING", "PENDING") for state, _, _ in found.values())

    until(ended, f"the accounts of job {job} to say that it ended")
    return found


def at_once(times: dict[str, tuple[str, str, str]]) -> int:
    """Return how many jobs ran at one time at most; one that ends in the second in which another begins does not count."""
    return max(sum(start <= at < end for _, start, end in times.values()) for _, at, _ in times.values())


def process_of(job: str) -> int:
    """Return the process of a running job of an array."""
    array, _, place = job.partition("_")
    wanted = {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={place}".encode()}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted <= set(path.read_bytes().split(b"\0")) and b"submitit.core._submit" in (path.parent / "cmdline").read_bytes():
                return int(path.parent.name)
    raise AssertionError(f"no process of job {job}")


def kill(job: str) -> None:
    """Kill the process of a job, which can neither say nor save anything."""
    os.kill(process_of(job), signal.SIGKILL)
