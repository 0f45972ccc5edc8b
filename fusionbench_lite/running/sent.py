"""Jobs that submitit sent, as their folders and Slurm's queue know them: whether they are still to come, and where they log."""

from __future__ import annotations

import getpass
import logging
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PAUSE, LONGEST_PAUSE = 2.0, 30.0
"""Seconds between two looks at the queue, the first and the longest."""


def wait(launcher: Mapping[str, Any]) -> None:
    """Wait until no job that this launcher sent is queued or runs.

    submitit gives up at the first job that is lost, while the others go on. Slurm's queue is asked, for its accounting calls a
    job that a failed node gave back ended.
    """
    ids = {path.name.removesuffix(_SUBMITTED) for path in _submitted(launcher)}
    pause, silent = PAUSE, False
    while ids:
        if str(launcher.get("_target_", "")).endswith("SlurmLauncher"):
            queued = _queued()
            if queued is None and not silent:
                log.warning("squeue does not answer: waiting for it")
            silent = queued is None
            going = ids if queued is None else {one for one in ids if one.partition("_")[0] in queued}
        else:
            going = {one for one in ids if _is_running(one)}
        if not going:
            return
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE)


def logs(launcher: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Path]:
    """Return the newest log of the job that one of its overrides, such as run=ID, names."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    wanted, found = set(overrides), {}
    for path in sorted(_submitted(launcher), key=lambda path: path.stat().st_mtime):
        paths = JobPaths(path.parent, job_id=path.name.removesuffix(_SUBMITTED), task_id=0)
        for override in wanted.intersection(DelayedSubmission.load(path).args[0]):
            found[override] = next((log for log in (paths.stderr, paths.stdout) if log.exists()), paths.stderr)
    return found


_SUBMITTED = "_submitted.pkl"


def _submitted(launcher: Mapping[str, Any]) -> Iterator[Path]:
    """Yield what submitit stored of each job."""
    from submitit.core.utils import JobPaths

    if "submitit_folder" in launcher:
        yield from JobPaths.get_first_id_independent_folder(launcher["submitit_folder"]).rglob(f"*{_SUBMITTED}")


def _queued() -> set[str] | None:
    """Return the jobs of this user in Slurm's queue, arrays by the number of the array; None where Slurm does not answer."""
    line = ["squeue", "--noheader", "--format=%F", f"--user={getpass.getuser()}"]
    try:
        asked = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return set(asked.stdout.split()) if asked.returncode == 0 else None


def _is_running(number: str) -> bool:
    """Say whether a child of this process runs, by its number."""
    try:
        return os.waitpid(int(number), os.WNOHANG)[0] == 0
    except (ChildProcessError, ValueError):
        return False
