"""Random numbers of the adaptive methods, keyed by what they are for.

A draw depends on its key alone, not on what was drawn before: a resumed run or another order of the tasks sees the same numbers.
They are made in float32 on the processor, so that work in float64 and on other devices starts from the same. What is as large as
the weights and drawn in every step is made on the device of the run, whose generator has numbers of its own (docs/decisions.md,
D61).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusionbench_lite.base.randomness import seed_of
from fusionbench_lite.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor, device

TINY = 2.0**-24
"""Half the spacing of float32 below 1: what `open_uniform` keeps away from 0 and 1."""


def uniform(shape: Sequence[int], *key: object, device: device | None = None) -> Tensor:
    """Return float32 numbers from [0, 1), made on the processor unless a device is given."""
    where = torch.device("cpu") if device is None else device
    return torch.rand(tuple(shape), generator=_generator(key, where), device=where)


def open_uniform(shape: Sequence[int], *key: object, device: device | None = None) -> Tensor:
    """Return float32 numbers from (0, 1), so that logarithms of them and of 1 minus them are finite."""
    return uniform(shape, *key, device=device).clamp_(TINY, 1 - TINY)


def normal(shape: Sequence[int], *key: object) -> Tensor:
    """Return float32 standard normal numbers."""
    return torch.randn(tuple(shape), generator=_generator(key, torch.device("cpu")))


def _generator(key: tuple[object, ...], where: device) -> Generator:
    return torch.Generator(where).manual_seed(seed_of(*key) % 2**63)
