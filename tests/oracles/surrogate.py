"""MAP in float64, one task's surrogate after another, its minimum by bounded quasi-Newton from every corner and draw."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.optimize import minimize
from torch.func import functional_call

from tests.support.helpers import State


def merged_at(pretrained: State, experts: Mapping[str, State], coefficients: np.ndarray) -> State:
    """θ0 + Σ_t c_t τ_t."""
    out = {}
    for name, base in pretrained.items():
        out[name] = base
        if base.is_floating_point():
            out[name] = base + sum(float(c) * (e[name] - base) for c, e in zip(coefficients, experts.values(), strict=True))
    return out


def metrics(model, heads, state: State, batches: Mapping[str, tuple[torch.Tensor, torch.Tensor]], metric: str) -> list[float]:
    """Every task's error rate or cross entropy at some weights."""
    found = []
    for task, (x, labels) in batches.items():
        with torch.no_grad():
            log_p = heads[task](functional_call(model, state, (x,))).log_softmax(-1).numpy()
        right = labels.numpy()
        wrong = [float(row.argmax() != label) for row, label in zip(log_p, right, strict=True)]
        entropies = [-float(row[label]) for row, label in zip(log_p, right, strict=True)]
        found.append(float(np.mean(wrong if metric == "error" else entropies)))
    return found


def fitted(points: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray], float]:
    """The quadratic M̃(c) = ½ cᵀAc + bᵀc + e closest to the values, by the normal equations' pseudo-inverse."""
    tasks = points.shape[1]
    pairs = list(itertools.combinations_with_replacement(range(tasks), 2))

    def features(c: np.ndarray) -> np.ndarray:
        return np.array([1.0, *c, *(c[i] * c[j] for i, j in pairs)])

    design = np.array([features(c) for c in points])
    weights = np.linalg.pinv(design.T @ design, rcond=1e-13) @ design.T @ values
    return lambda c: float(features(c) @ weights)


def best(functions: list[Callable[[np.ndarray], float]], points: np.ndarray, high: float) -> np.ndarray:
    """The minimum of the functions' sum in the box."""
    starts = [*points, *np.array(list(itertools.product((0.0, high), repeat=points.shape[1])))]
    bounds = [(0.0, high)] * points.shape[1]
    ends = [
        minimize(lambda c: sum(f(c) for f in functions), start, bounds=bounds, method="L-BFGS-B", tol=1e-14) for start in starts
    ]
    return min(ends, key=lambda end: end.fun).x


def search(points: np.ndarray, values: np.ndarray, high: float) -> np.ndarray:
    """The coefficients of MAP from draws [n, T] and metrics [n, T]."""
    if len(points) < (points.shape[1] + 1) * (points.shape[1] + 2) // 2:
        return points[values.sum(1).argmin()]
    return best([fitted(points, values[:, n]) for n in range(values.shape[1])], points, high)
