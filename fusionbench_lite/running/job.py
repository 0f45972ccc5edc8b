"""What a process does otherwise where a launcher started it as a job of a cluster: signals, threads, and a log of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fusionbench_lite.base import preemption
from fusionbench_lite.errors import InputError
from fusionbench_lite.planning.refusals import refuse

log = logging.getLogger(__name__)


class Lost(Exception):
    """Runs of a sweep that have no record though their jobs ended; the text names them."""


@contextlib.contextmanager
def in_a_job(config: DictConfig, hydra: Any) -> Iterator[None]:
    """Answer the cluster's signal, use the processors that it gave, and say in the job's log why a job failed.

    Nothing changes in a process that submitit did not start, but for the threads in a step of Slurm.
    """
    if (given := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdigit():  # from srun's affinity they cannot be read
        os.environ.setdefault("OMP_NUM_THREADS", given)
    if "SUBMITIT_EXECUTOR" not in os.environ:
        yield
        return
    preemption.install(OmegaConf.select(hydra, "launcher.signal_delay_s", default=None))
    try:
        check_processes(config, hydra)
        yield
    except preemption.Abandoned as left:
        log.error("the job is not queued again: %s", left)
        raise left.error from None
    except InputError as error:
        refuse(error)
        raise
    except Exception:
        traceback.print_exc()  # what sent the job prints it too, where it is still there
        raise


def check_processes(config: DictConfig, hydra: Any) -> None:
    """Refuse jobs of several processes: each would do the whole run."""
    launcher: dict[str, Any] = {**hydra.launcher} if hydra.get("launcher") else {}
    for key in ("nodes", "tasks_per_node"):
        if (launcher.get(key) or 1) > 1:
            raise InputError(f"hydra.launcher.{key}={launcher[key]}: a job is one process, and each run a job; leave it at 1")
    if "timeout_min" in launcher and config.trainer.devices > 1:
        raise InputError(f"trainer.devices={config.trainer.devices}: a job of this launcher is one process; leave it at 1")
