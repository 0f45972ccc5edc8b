"""Float64 numpy oracles of the methods that weigh or interpolate experts: Fisher, RegMean, MetaGPT, SLERP, Model Stock.

The conventions are those of `tests.oracles.data_free`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from tests.oracles.data_free import Arrays, State, array, merged_names, task_vectors

# ---------------------------------------------------------------- Fisher, RegMean, MetaGPT


def fisher_merging(
    pretrained: State,
    experts: Mapping[str, State],
    fisher: Mapping[str, State],
    epsilon: float = 1e-6,
    normalize: bool = True,
) -> Arrays:
    names = merged_names(pretrained)
    listed = [n for n, v in pretrained.items() if v.is_floating_point()]
    weight = {}
    for task in experts:
        norm = math.sqrt(math.fsum(float((array(fisher[task][n]) ** 2).sum()) for n in listed)) + epsilon
        # Constants common to all tasks cancel. A Fisher of zeros without epsilon has no weight anywhere.
        weight[task] = (1.0 / norm if norm > 0 else 0.0) if normalize else 1.0
    out = {}
    for name in names:
        values = np.stack([array(e[name]) for e in experts.values()])
        shares = np.stack([weight[t] * (array(fisher[t][name]) + epsilon) for t in experts])
        mass = shares.sum(0)
        weighted = (shares * values).sum(0) / np.where(mass == 0, 1.0, mass)
        out[name] = np.where(mass == 0, values.mean(0), weighted)
    return out


def regmean(
    pretrained: State, experts: Mapping[str, State], gram: Mapping[str, State], off_diagonal: float = 0.95
) -> Arrays:
    out = {}
    for name in merged_names(pretrained):
        values = [array(e[name]) for e in experts.values()]
        mean = sum(values) / len(values)
        out[name] = mean
        listed = [t for t in experts if name in gram[t]]
        if not listed:
            continue
        assert len(listed) == len(values)
        n = gram[listed[0]][name].shape[0]
        moments = []
        for task in experts:
            g = array(gram[task][name])
            moments.append(off_diagonal * g + (1 - off_diagonal) * np.diag(np.diag(g)))
        inverse = np.linalg.pinv(sum(moments), rcond=1e-12, hermitian=True)
        if mean.shape[1] == n:  # Linear [out, in]; also when both dimensions fit
            right = sum(g @ (w - mean).T for g, w in zip(moments, values, strict=True))
            out[name] = mean + (inverse @ right).T
        else:  # Conv1D [in, out]
            out[name] = mean + inverse @ sum(g @ (w - mean) for g, w in zip(moments, values, strict=True))
    return out


def metagpt_coefficients(pretrained: State, experts: Mapping[str, State]) -> dict[str, float]:
    squares = {}
    for task, expert in experts.items():
        parts = [task_vectors(pretrained, {task: expert}, n)[0] for n in merged_names(pretrained)]
        squares[task] = math.fsum(float((p**2).sum()) for p in parts)
    whole = math.fsum(squares.values())
    return {t: s / whole if whole > 0 else 0.0 for t, s in squares.items()}


def metagpt(pretrained: State, experts: Mapping[str, State]) -> Arrays:
    factors = metagpt_coefficients(pretrained, experts)
    out = {}
    for name in merged_names(pretrained):
        taus = task_vectors(pretrained, experts, name)
        out[name] = array(pretrained[name]) + sum(f * tau for f, tau in zip(factors.values(), taus, strict=True))
    return out


# ---------------------------------------------------------------- SLERP, NuSLERP, Model Stock


def unit(v: np.ndarray) -> np.ndarray:
    norm = math.sqrt(math.fsum(float(x) ** 2 for x in v))
    return v / norm if norm > 1e-8 else v


def spherical(a: np.ndarray, b: np.ndarray, t: float, linear: Callable[[float, float], bool]) -> np.ndarray:
    """Interpolate two flat vectors; `linear(cosΩ, sinΩ)` says when to fall back to a straight line."""
    cosine = min(1.0, max(-1.0, math.fsum(float(x) * float(y) for x, y in zip(unit(a), unit(b), strict=True))))
    angle = math.acos(cosine)
    if linear(cosine, math.sin(angle)):
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def slerp(pretrained: State, experts: Mapping[str, State], t: float = 0.5) -> Arrays:
    out = {}
    for name in merged_names(pretrained):
        a, b = (array(e[name]) for e in experts.values())
        out[name] = spherical(a.ravel(), b.ravel(), t, lambda c, s: abs(c) > 0.9995).reshape(a.shape)
    return out


def nuslerp(
    pretrained: State,
    experts: Mapping[str, State],
    t: float = 0.5,
    vectors: str = "task_vectors",
    dimension: str = "flat",
) -> Arrays:
    out = {}
    for name in merged_names(pretrained):
        if vectors == "task_vectors":
            # As the work precision sees them: nearly opposite vectors magnify the rounding of the difference.
            work = torch.float64 if pretrained[name].dtype == torch.float64 else torch.float32
            origin = array(pretrained[name])
            a, b = (array(e[name].to(work) - pretrained[name].to(work)) for e in experts.values())
        else:
            origin = np.zeros(tuple(pretrained[name].shape))
            a, b = (array(e[name]) for e in experts.values())
        a, b = np.atleast_1d(a), np.atleast_1d(b)
        if dimension == "flat":
            a, b, axis = a.reshape(1, -1), b.reshape(1, -1), 1
        else:
            axis = 0 if dimension == "first" else a.ndim - 1
        a, b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
        merged = np.empty_like(a)
        for index in np.ndindex(a.shape[:-1]):
            merged[index] = spherical(a[index], b[index], t, lambda c, s: abs(s) < 1e-8)
        out[name] = origin + np.moveaxis(merged, -1, axis).reshape(origin.shape)
    return out


def stock_ratio(taus: list[np.ndarray], average: str) -> float:
    """The interpolation ratio of flat task vectors: N cosθ / (1 + (N-1) cosθ)."""
    n = len(taus)
    cosines = []
    for i in range(n):
        for j in range(i + 1, n):
            size = math.sqrt(float((taus[i] ** 2).sum())) * math.sqrt(float((taus[j] ** 2).sum()))
            cosines.append(min(1.0, max(-1.0, float((taus[i] * taus[j]).sum()) / size)) if size > 0 else 0.0)
    if average == "angles":
        cosine = math.cos(math.fsum(math.acos(c) for c in cosines) / len(cosines))
    else:
        cosine = math.fsum(cosines) / len(cosines)
    below = 1 + (n - 1) * cosine
    return n * cosine / below if below > 1e-6 else 0.0


def model_stock(
    pretrained: State, experts: Mapping[str, State], average: str = "angles", granularity: str = "tensor"
) -> Arrays:
    if len(experts) == 1:
        return {n: array(next(iter(experts.values()))[n]) for n in merged_names(pretrained)}
    out = {}
    for name in merged_names(pretrained):
        base = array(pretrained[name])
        rows = len(np.atleast_1d(base)) if granularity == "row" else 1
        taus = [tau.reshape(rows, -1) for tau in task_vectors(pretrained, experts, name)]
        mean = sum(taus) / len(taus)
        ratios = [stock_ratio([tau[i] for tau in taus], average) for i in range(rows)]
        out[name] = base + (np.array(ratios)[:, None] * mean).reshape(base.shape)
    return out
