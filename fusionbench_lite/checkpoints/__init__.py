"""Published experts: where they are, whether they are what they should be, and their tensors as safetensors."""

from __future__ import annotations

from fusionbench_lite.checkpoints.api import Found, Report, Request
from fusionbench_lite.checkpoints.families import FAMILIES
from fusionbench_lite.checkpoints.needs import inventory
from fusionbench_lite.checkpoints.soundness import until_sound

__all__ = ["FAMILIES", "Found", "Report", "Request", "find", "find_base", "inventory"]


def find(request: Request, report: Report | None = None) -> Found:
    """Return checked safetensors files of a request, downloading and converting what the caches lack.

    All bytes of converted files are compared with their checksums; a damaged one is made again from its source.

    Raises InputError, in one line, for a family without the model or a task, a missing file (with where to put it), a damaged
    or foreign file, and what the hub refuses.
    """
    from fusionbench_lite.checkpoints import own
    from fusionbench_lite.checkpoints.finding import Finder  # imports torch

    def attempt() -> Found:
        finder = Finder(request, report)
        weights = own.collected(finder) if request.family == "own" else finder.collected()
        finder.conversions.check()
        return weights

    return until_sound(attempt)


def find_base(request: Request, report: Report | None = None) -> Found:
    """Return the pretrained model of a request's family, with its text side, whatever the tasks; errors as of `find`."""
    from fusionbench_lite.checkpoints.finding import Finder

    return until_sound(lambda: Finder(request, report, {}).base())
