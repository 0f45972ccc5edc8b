"""Tasks shared between the processes of one run, as torchrun or Lightning start them."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from fusionbench_lite.errors import InputError

T = TypeVar("T")

PATIENCE = datetime.timedelta(days=7)
"""How long processes wait for each other: the first one may have to wait until another run is done with the same line."""


def is_first() -> bool:
    """Say whether this is the process of a run that writes and prints."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def is_connected() -> bool:
    """Say whether this process is connected with others of its run."""
    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())


def own_tasks(tasks: Iterable[str]) -> list[str]:
    """Return the tasks of this process: every n-th, where n processes share the work; all where one runs alone."""
    tasks = list(tasks)
    if is_connected():
        return tasks[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
    return tasks


def gathered(results: dict[str, Any], portable: Callable[[Any], Any] = lambda result: result) -> dict[str, Any]:
    """Return the results of all processes' tasks; `portable` makes a result ready to be sent, where it is sent at all."""
    if not is_connected():
        return results
    parts: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, {task: portable(result) for task, result in results.items()})
    return {task: result for part in parts for task, result in part.items()}


def connect() -> bool:
    """Connect the processes that torchrun started, once and for all; returns whether there are several.

    A process alone connects to nothing, and those that Lightning starts are connected by Lightning.
    """
    if is_connected():
        return True
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    return True


def agreed(value: T) -> T:
    """Return the first process's value to all that are connected. Raises InputError where the first one is gone."""
    if not connect():
        return value
    said = [value]
    try:
        torch.distributed.broadcast_object_list(said, src=0)
    except RuntimeError as error:
        if is_first():
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"the first process of this run does not answer, look at what it said ({reason})") from error
    return said[0]
