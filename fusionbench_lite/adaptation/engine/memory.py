"""Whether something that only saves time fits into memory."""

from __future__ import annotations

import os

import torch

from fusionbench_lite.weights.costs import SHARE

CPU = torch.device("cpu")


def allows(nbytes: int, device: torch.device) -> bool:
    """Say whether so many bytes are at most a share of the device's memory, all of it, not what happens to be free:
    the same run decides the same when it is resumed."""
    return nbytes <= SHARE * total(device)


def total(device: torch.device) -> int:
    """Return the bytes of a device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
