"""Float64 numpy oracles of TSV-C, Iso-CTS, STAR, KnOTS and of the numerical-rank modes of TSV-M and Iso-C.

Conventions as in `data_free.py`; `tsv_c` returns {task: {name: array}}. Everything goes through full SVDs, the wide one of
KnOTS included; no Gram matrix, no QR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tests.oracles.data_free import (
    Arrays,
    State,
    _matrices_else_mean,
    array,
    merged_names,
    polar,
    task_vectors,
    ties_vector,
    truncated,
)

GAP = 1e-5
"""Singular values below this part of the largest are rounding noise: the tests build spectra with a wide gap around it."""


def partial_polar(matrix: np.ndarray) -> np.ndarray:
    """The polar factor that is zero where the matrix is: the only one that rounding noise does not decide."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    r = int((s > GAP * s[0]).sum())
    return u[:, :r] @ vt[:r]


def numerical_rank(matrix: np.ndarray) -> int:
    values = np.linalg.svd(matrix, compute_uv=False)
    return int((values > GAP * values[0]).sum()) if values.size and values[0] > 0 else 0


# ---------------------------------------------------------------- TSV-C


def tsv_c(pretrained: State, experts: Mapping[str, State], rank_ratio: float | None = None) -> dict[str, Arrays]:
    """Every 2-D tensor keeps the k leading components of each task; all other tensors are the expert's."""
    out: dict[str, Arrays] = {task: {} for task in experts}
    for name in merged_names(pretrained):
        base = array(pretrained[name])
        for task, tau in zip(experts, task_vectors(pretrained, experts, name), strict=True):
            if base.ndim == 2:
                p = min(base.shape)
                k = p // len(experts) if rank_ratio is None else int(rank_ratio * p)
                u, s, vt = truncated(tau, k)
                out[task][name] = base + u @ np.diag(s) @ vt
            else:
                out[task][name] = base + tau
    return out


# ---------------------------------------------------------------- numerical rank


def tsv_m_numerical(
    pretrained: State,
    experts: Mapping[str, State],
    scaling: float = 1.0,
    rank_ratio: float | None = None,
    matrices: str = "all_2d",
) -> Arrays:
    """TSV-M where no task contributes more components than its matrix has."""

    def update(taus: list[np.ndarray]) -> np.ndarray:
        p = min(taus[0].shape)
        k = p // len(taus) if rank_ratio is None else int(rank_ratio * p)
        parts = [truncated(tau, min(k, numerical_rank(tau))) for tau in taus]
        left = np.concatenate([u for u, _, _ in parts], axis=1)
        right = np.concatenate([vt for _, _, vt in parts], axis=0)
        if left.shape[1] == 0:
            return np.zeros_like(taus[0])
        return partial_polar(left) @ np.diag(np.concatenate([s for _, s, _ in parts])) @ partial_polar(right)

    return _matrices_else_mean(pretrained, experts, scaling, matrices, update)


def iso_c_numerical(
    pretrained: State, experts: Mapping[str, State], scaling: float = 1.0, matrices: str = "all_2d"
) -> Arrays:
    """Iso-C on the range of the sum only: its r directions share the nuclear norm, the null directions stay empty."""

    def update(taus: list[np.ndarray]) -> np.ndarray:
        total = np.sum(taus, axis=0)
        r = numerical_rank(total)
        if r == 0:
            return np.zeros_like(total)
        u, s, vt = truncated(total, r)
        return s.mean() * u @ vt

    return _matrices_else_mean(pretrained, experts, scaling, matrices, update)


# ---------------------------------------------------------------- Iso-CTS


def cts_split(p: int, count: int, common_fraction: float) -> tuple[int, int]:
    """The number of common directions and of directions per task."""
    q = round((p - int(common_fraction * p)) / count)  # Python rounds halves to even, as the reference
    q = min(q, p // count)
    return p - q * count, q


def iso_cts_matrix(taus: list[np.ndarray], common_fraction: float) -> np.ndarray:
    total = np.sum(taus, axis=0)
    if not total.any() and not any(tau.any() for tau in taus):
        return np.zeros_like(total)
    c, q = cts_split(min(total.shape), len(taus), common_fraction)
    common = truncated(total, c)
    parts = [truncated(tau - common[0] @ (common[0].T @ tau), q) for tau in taus]
    left = np.concatenate([u for u, _, _ in parts] + [common[0]], axis=1)
    values = np.concatenate([s for _, s, _ in parts] + [common[1]])
    right = np.concatenate([vt for _, _, vt in parts] + [common[2]], axis=0)
    return values.mean() * polar(left) @ polar(right)


def iso_cts(
    pretrained: State,
    experts: Mapping[str, State],
    scaling: float = 1.0,
    common_fraction: float = 0.8,
    matrices: str = "all_2d",
) -> Arrays:
    return _matrices_else_mean(
        pretrained, experts, scaling, matrices, lambda taus: iso_cts_matrix(taus, common_fraction)
    )


# ---------------------------------------------------------------- STAR


def star_rank(values: np.ndarray, eta: float) -> int:
    """The smallest number of leading singular values that make eta percent of their sum."""
    reached = 0.0
    for i, value in enumerate(values):
        reached += float(value)
        if reached >= eta / 100 * float(values.sum()):
            return i + 1
    return len(values)


def star_matrix(tau: np.ndarray, eta: float) -> np.ndarray:
    if not tau.any():
        return np.zeros_like(tau)
    u, s, vt = np.linalg.svd(tau, full_matrices=False)
    r = star_rank(s, eta)
    kept = s[:r] * (s.sum() / s[:r].sum())
    return u[:, :r] @ np.diag(kept) @ vt[:r]


def star(pretrained: State, experts: Mapping[str, State], eta: float = 40) -> Arrays:
    out = {}
    for name in merged_names(pretrained):
        taus = task_vectors(pretrained, experts, name)
        if taus[0].ndim == 2:
            taus = [star_matrix(tau, eta) for tau in taus]
        out[name] = array(pretrained[name]) + np.mean(taus, axis=0)
    return out


# ---------------------------------------------------------------- KnOTS


def representations(
    pretrained: State, experts: Mapping[str, State], cutoff: float
) -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
    """{name: (U, [R_t])} for every 2-D tensor that some expert moves."""
    out = {}
    for name in merged_names(pretrained):
        if pretrained[name].ndim != 2:
            continue
        taus = task_vectors(pretrained, experts, name)
        u, s, _ = np.linalg.svd(np.concatenate(taus, axis=1), full_matrices=False)
        u = u[:, s > cutoff]
        if u.shape[1] and any(tau.any() for tau in taus):
            out[name] = (u, [u.T @ tau for tau in taus])
    return out


def knots_ta(
    pretrained: State, experts: Mapping[str, State], scaling: float = 0.6, cutoff: float = 1e-5
) -> Arrays:
    out = {name: array(pretrained[name]) for name in merged_names(pretrained)}
    for name, (u, parts) in representations(pretrained, experts, cutoff).items():
        out[name] = out[name] + scaling * u @ np.sum(parts, axis=0)
    return out


def knots_ties(
    pretrained: State,
    experts: Mapping[str, State],
    scaling: float = 0.6,
    keep: float = 0.2,
    cutoff: float = 1e-5,
) -> Arrays:
    out = {name: array(pretrained[name]) for name in merged_names(pretrained)}
    aligned = representations(pretrained, experts, cutoff)
    if not aligned:
        return out
    flat = [np.concatenate([parts[t].ravel() for _, parts in aligned.values()]) for t in range(len(experts))]
    merged, start = ties_vector(flat, keep, "mean"), 0
    for name, (u, parts) in aligned.items():
        size = parts[0].size
        out[name] = out[name] + scaling * u @ merged[start : start + size].reshape(parts[0].shape)
        start += size
    return out


ORACLES: dict[str, Callable[..., Arrays]] = {
    "iso_cts": iso_cts,
    "star": star,
    "knots_ta": knots_ta,
    "knots_ties": knots_ties,
}
