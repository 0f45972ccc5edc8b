"""Dropout in the steps of an adaptation, with random numbers that a key decides and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fusionbench_lite.base.randomness import seed_of

Key = tuple[object, ...]


@contextlib.contextmanager
def dropping(model: nn.Module, key: Key) -> Iterator[None]:
    """Put the model in training mode for the length of the block, its random numbers drawn by the key.

    Norms that count statistics in training stay as they are at evaluation. Modes and torch's generators are afterwards what they
    were: a step depends on its key alone, and a resumed run draws what an undisturbed one does.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed_of(*key) % 2**63)
        for module, _ in modes:  # not by train(): some modules change their weights there
            module.training = not isinstance(module, _NormBase)
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
