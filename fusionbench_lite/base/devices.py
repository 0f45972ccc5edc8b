"""The device that a run is to use."""

from __future__ import annotations

import os

import torch

from fusionbench_lite.errors import InputError


def device_of(name: str) -> torch.device:
    """Return the device of this name; "auto" takes the GPU where there is one. Of several processes each takes its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device={name}, but this machine has no GPU that torch can use: set device=cpu")
    return torch.device(name)
