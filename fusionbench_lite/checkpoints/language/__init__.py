"""Experts of language models: published ones from the hub, adapters of LoRA, and folders of one's own."""

from __future__ import annotations

from pathlib import Path

from fusionbench_lite.checkpoints.language.api import MANIFEST, OWN, PRETRAINED, Folder, Found, Report, Request
from fusionbench_lite.checkpoints.language.needs import inventory
from fusionbench_lite.checkpoints.language.releases import Release, families, families_of, release

__all__ = [
    "MANIFEST", "OWN", "PRETRAINED", "Folder", "Found", "Release", "Report", "Request", "families", "families_of", "find",
    "find_base", "inventory", "release",
]


def find(request: Request, report: Report | None = None, base: Path | None = None) -> Found:
    """Return the weights of a request, downloading and converting what the caches lack; `base` is a folder in place of the
    pretrained model's. Raises InputError in one line for what is missing, damaged, foreign or refused by the hub."""
    from fusionbench_lite.checkpoints.language.finding import Finder  # imports torch
    from fusionbench_lite.checkpoints.soundness import until_sound

    return until_sound(lambda: Finder(request, report, base).found())


def find_base(request: Request, report: Report | None = None) -> Folder:
    """Return the folder of a request's pretrained model, without its experts; errors are those of `find`."""
    from fusionbench_lite.checkpoints.language.finding import Finder

    return Finder(request, report).base()
