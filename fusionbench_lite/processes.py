"""Tasks shared between the processes of one run, as torchrun or Lightning start them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch


def own_tasks(tasks: Iterable[str]) -> list[str]:
    """Return the tasks of this process: every n-th, where n processes share the work; all where one runs alone."""
    tasks = list(tasks)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return tasks[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
    return tasks


def gathered(own: dict[str, Any], portable: Callable[[Any], Any] = lambda result: result) -> dict[str, Any]:
    """Return the results of all processes' tasks; `portable` makes a result ready to be sent, where it is sent at all."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    parts: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, {task: portable(result) for task, result in own.items()})
    return {task: result for part in parts for task, result in part.items()}


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Connect the processes that torchrun started, for the length of the block; one process alone connects to nothing."""
    wanted = int(os.environ.get("WORLD_SIZE", "1")) > 1 and torch.distributed.is_available()
    if not wanted or torch.distributed.is_initialized():
        yield
        return
    torch.distributed.init_process_group("gloo")  # predictions are exchanged, nothing larger: no need for NCCL
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
