"""Small state dicts and comparisons of the law tests of doGe, AWD and WUDI."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.oracles.data_free import array
from tests.support.helpers import distance, experts_of, rng, touched

SEED = st.integers(0, 2**31)
SHAPE = st.sampled_from([(6, 5), (5, 6), (6, 6), (7, 3)])
DOUBLE = torch.float64
FEW = {"steps": 4}
A, B = "encoder.a.weight", "encoder.b.weight"


def draw(seed: int, dtype: torch.dtype = DOUBLE, shape: tuple[int, int] = (6, 5)) -> dict[str, torch.Tensor]:
    g = rng(seed)
    shapes = {A: shape, B: (4, 6), "encoder.layer_norm.weight": (4,), "head.weight": (3, 4)}
    return {n: (0.1 * torch.randn(s, generator=g, dtype=DOUBLE)).to(dtype) for n, s in shapes.items()}


def matrix(seed: int, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    return {A: 0.1 * torch.randn(shape, generator=rng(seed), dtype=DOUBLE)}


def tuned(base, count: int, seed: int, size: float = 1e-2):
    return experts_of(base, count, seed % 1009, size)


def merge(method, base, experts, **given_):
    return fbl.merge(method, base, experts, **given_).state_dict()


def close(state, other, tolerance=1e-9, names=None):
    for name in names or touched(state):
        error = distance(state[name], array(other[name]))
        assert error <= tolerance, f"{name}: {error:.2e}"
