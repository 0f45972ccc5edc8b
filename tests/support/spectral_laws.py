"""Small state dicts and comparisons of the law tests of the spectral methods."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st

import fusionbench_lite as fbl
from tests.oracles.data_free import array
from tests.support.helpers import distance, rng, touched

SEED = st.integers(0, 2**31)
SHAPE = st.sampled_from([(5, 5), (6, 4), (3, 7), (1, 4)])
DOUBLE = torch.float64


def draw(seed: int, dtype: torch.dtype = DOUBLE, shape: tuple[int, int] = (6, 5)) -> dict[str, torch.Tensor]:
    g = rng(seed)
    shapes = {"w": shape, "proj": (3, 4), "ln": (4,), "conv": (2, 1, 2, 2)}
    return {n: torch.randn(s, generator=g, dtype=DOUBLE).to(dtype) for n, s in shapes.items()}


def zero(shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    return {"w": torch.zeros(shape, dtype=DOUBLE)}


def merge(method, base, experts, task=None, **given_):
    return fbl.merge(method, base, experts, **given_).state_dict(task)


def close(state, other, tolerance=1e-9, names=None):
    for name in names or touched(state):
        error = distance(state[name], array(other[name]))
        assert error <= tolerance, f"{name}: {error:.2e}"


def spectrum(matrix) -> np.ndarray:
    return np.linalg.svd(array(matrix), compute_uv=False)


def conditioned(experts, at_least: float = 1e-2) -> None:
    """Leave out sums and tasks with nearly equal or tiny singular values: their vectors are not well defined."""
    parts = [array(e["w"]) for e in experts.values()]
    for matrix in [*parts, sum(parts)]:
        values = spectrum(torch.from_numpy(matrix))
        gaps = np.diff(np.append(values, 0.0))
        assume(float(np.abs(gaps).min()) > at_least * values[0])


def rotations(seed: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = rng(seed)
    return tuple(torch.linalg.qr(torch.randn(n, n, generator=g, dtype=DOUBLE))[0] for n in (rows, columns))
