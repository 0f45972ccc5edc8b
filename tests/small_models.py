"""A small classifier in float64 for the tests of the statistics, and inputs for it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

CLASSES, WIDTH, HIDDEN = 4, 5, 3


def inputs(count: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perceptron(seed: int = 1) -> nn.Module:
    """tanh(x Aᵀ + a) Bᵀ + b in float64, with a buffer and a parameter that nothing reads."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        OrderedDict(first=nn.Linear(WIDTH, HIDDEN), bend=nn.Tanh(), drop=nn.Dropout(0.5), second=nn.Linear(HIDDEN, CLASSES))
    ).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    model.register_buffer("running", torch.ones(3))
    model.register_buffer("count", torch.ones(3, dtype=torch.int64))
    return model


def identity(features):
    return features
