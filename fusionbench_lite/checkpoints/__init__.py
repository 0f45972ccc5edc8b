"""Published experts: where they are, whether they are what they should be, and their tensors as safetensors."""

from __future__ import annotations

from fusionbench_lite.checkpoints.api import Found, Report, Request
from fusionbench_lite.checkpoints.families import FAMILIES
from fusionbench_lite.checkpoints.needs import inventory

__all__ = ["FAMILIES", "Found", "Report", "Request", "find", "find_base", "inventory"]


def find(request: Request, report: Report | None = None) -> Found:
    """Return checked safetensors files of a request, downloading and converting what the caches lack.

    Raises InputError, in one line, for a family without the model or a task, a missing file (with where to put it), a damaged
    or foreign file, and what the hub refuses.
    """
    from fusionbench_lite.checkpoints.finding import Finder  # imports torch

    return Finder(request, report).found()


def find_base(request: Request, report: Report | None = None) -> Found:
    """Return the pretrained model of a request's family, with its text side, whatever the tasks; errors as of `find`."""
    from fusionbench_lite.checkpoints.finding import Finder

    return Finder(request, report, {}).base()
