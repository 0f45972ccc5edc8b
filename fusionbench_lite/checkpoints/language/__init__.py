"""Experts of language models: published ones from the hub, adapters of LoRA, and folders of one's own."""

from __future__ import annotations

from pathlib import Path

from fusionbench_lite.checkpoints.language.api import MANIFEST, OWN, PRETRAINED, Found, Report, Request
from fusionbench_lite.checkpoints.language.needs import inventory
from fusionbench_lite.checkpoints.language.releases import Release, families, families_of, release

__all__ = [
    "MANIFEST", "OWN", "PRETRAINED", "Found", "Release", "Report", "Request", "families", "families_of", "find", "inventory",
    "release",
]


def find(request: Request, report: Report | None = None, base: Path | None = None) -> Found:
    """Return the weights of a request, downloading and converting what the caches lack; `base` is a folder in place of the
    pretrained model's. Raises InputError in one line for what is missing, damaged, foreign or refused by the hub."""
    from fusionbench_lite.checkpoints.language.finding import Finder  # imports torch
    from fusionbench_lite.checkpoints.soundness import until_sound

    return until_sound(lambda: Finder(request, report, base).found())
