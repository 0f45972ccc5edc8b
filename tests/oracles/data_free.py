"""Float64 numpy oracles of the data-free methods.

Each oracle takes `pretrained` {name: Tensor} and `experts` {task: {name: Tensor}} and returns {name: float64 array} for
the tensors that merging touches (floating point, at least one element; one without dimension counts as one entry).
Everything else is expected to pass through from `pretrained`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

State = Mapping[str, torch.Tensor]
Arrays = dict[str, np.ndarray]


def array(tensor: torch.Tensor) -> np.ndarray:
    """The values of `tensor` as float64."""
    return tensor.detach().to(torch.float64).numpy().copy()


def merged_names(pretrained: State) -> list[str]:
    """Names of the tensors that merging touches, sorted."""
    return sorted(n for n, v in pretrained.items() if v.is_floating_point() and v.numel() > 0)


def is_factorised(name: str, shape: tuple[int, ...], policy: str) -> bool:
    """Whether an SVD method factorises this tensor under the `matrices` policy."""
    if len(shape) != 2:
        return False
    if policy == "attn_mlp":
        return ("attn" in name or "mlp" in name) and "ln" not in name and "bias" not in name
    if policy == "all_2d":
        return "text_projection" not in name
    if policy == "encoder_linear":
        return "encoder" in name and "weight" in name and "layer_norm" not in name
    if policy == "block_linear":
        return any(part.isdigit() for part in name.split(".")[1:-1]) and "weight" in name and "bias" not in name
    if policy == "query_value":
        return name[-8:] in ("q.weight", "v.weight")
    raise AssertionError(policy)


def task_vectors(pretrained: State, experts: Mapping[str, State], name: str) -> list[np.ndarray]:
    base = array(pretrained[name])
    return [np.asarray(array(expert[name]) - base) for expert in experts.values()]


# ---------------------------------------------------------------- elementwise methods


def weight_averaging(pretrained: State, experts: Mapping[str, State]) -> Arrays:
    return {n: np.mean([array(e[n]) for e in experts.values()], axis=0) for n in merged_names(pretrained)}


def task_arithmetic(pretrained: State, experts: Mapping[str, State], scaling: float = 0.3) -> Arrays:
    out = {}
    for name in merged_names(pretrained):
        out[name] = array(pretrained[name])
        for tau in task_vectors(pretrained, experts, name):
            out[name] = out[name] + scaling * tau
    return out


def trim(flat: np.ndarray, keep: float, virtual_zeros: int) -> np.ndarray:
    """Zero everything below the TIES threshold: with d coordinates the (d - int(keep d))-th smallest magnitude."""
    magnitudes = sorted([abs(float(v)) for v in flat] + [0.0] * virtual_zeros)
    d = len(magnitudes)
    k = d - int(keep * d)
    if k == 0:
        return flat.copy()
    threshold = magnitudes[k - 1]
    return np.array([v if abs(v) >= threshold else 0.0 for v in flat])


def disjoint(column: list[float], gamma: float, reduce: str) -> float:
    """Merge one coordinate: only the values on the elected side, gamma = 0 behaving like negative."""
    chosen = [v for v in column if (v > 0 if gamma > 0 else v < 0)]
    if reduce == "sum":
        return sum(chosen)
    if reduce == "mean":
        return sum(chosen) / max(1, len(chosen))
    if reduce == "max":
        return gamma * max((abs(v) for v in chosen), default=0.0)
    raise AssertionError(reduce)


def ties_vector(flat: list[np.ndarray], keep: float, reduce: str, virtual_zeros: int = 0) -> np.ndarray:
    """The merged flat task vector of TIES, coordinate by coordinate."""
    trimmed = [trim(v, keep, virtual_zeros) for v in flat]
    votes = [float(np.sign(sum(float(v[j]) for v in trimmed))) for j in range(len(flat[0]))]
    majority = float(np.sign(sum(votes)))
    return np.array(
        [disjoint([float(v[j]) for v in trimmed], gamma or majority, reduce) for j, gamma in enumerate(votes)]
    )


def ties_merging(
    pretrained: State,
    experts: Mapping[str, State],
    keep: float = 0.2,
    reduce: str = "sum",
    scaling: float = 0.3,
    virtual_zeros: int = 0,
) -> Arrays:
    names = merged_names(pretrained)
    work = torch.float64 if any(pretrained[n].dtype == torch.float64 for n in names) else torch.float32
    flat = []
    for expert in experts.values():
        # The threshold is an order statistic of the task vector as the work precision sees it.
        parts = [(expert[n].to(work) - pretrained[n].to(work)).double().numpy().ravel() for n in names]
        flat.append(np.concatenate(parts))
    merged = ties_vector(flat, keep, reduce, virtual_zeros)
    out, start = {}, 0
    for name in names:
        base = array(pretrained[name])
        out[name] = base + scaling * merged[start : start + base.size].reshape(base.shape)
        start += base.size
    return out


# ---------------------------------------------------------------- SVD methods


def truncated(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :k], s[:k], vt[:k, :]


def polar(matrix: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def tsv_matrix(taus: list[np.ndarray], k: int) -> np.ndarray:
    """U_perp diag(sigma) V_perp^T of the k leading components of every task matrix."""
    if k == 0:
        return np.zeros_like(taus[0])
    parts = [truncated(tau, k) for tau in taus]
    left = polar(np.concatenate([u for u, _, _ in parts], axis=1))
    right = polar(np.concatenate([vt for _, _, vt in parts], axis=0))
    return left @ np.diag(np.concatenate([s for _, s, _ in parts])) @ right


def tsv_m(
    pretrained: State,
    experts: Mapping[str, State],
    scaling: float = 1.0,
    rank_ratio: float | None = None,
    matrices: str = "all_2d",
) -> Arrays:
    def update(taus: list[np.ndarray]) -> np.ndarray:
        p = min(taus[0].shape)
        return tsv_matrix(taus, p // len(taus) if rank_ratio is None else int(rank_ratio * p))

    return _matrices_else_mean(pretrained, experts, scaling, matrices, update)


def iso_matrix(total: np.ndarray) -> np.ndarray:
    u, s, vt = np.linalg.svd(total, full_matrices=False)
    return s.mean() * u @ vt


def iso_c(
    pretrained: State, experts: Mapping[str, State], scaling: float = 1.0, matrices: str = "all_2d"
) -> Arrays:
    return _matrices_else_mean(pretrained, experts, scaling, matrices, lambda taus: iso_matrix(sum(taus)))


def _matrices_else_mean(
    pretrained: State,
    experts: Mapping[str, State],
    scaling: float,
    matrices: str,
    update: Callable[[list[np.ndarray]], np.ndarray],
) -> Arrays:
    out = {}
    for name in merged_names(pretrained):
        taus = task_vectors(pretrained, experts, name)
        matrix = is_factorised(name, tuple(pretrained[name].shape), matrices)
        out[name] = array(pretrained[name]) + scaling * (update(taus) if matrix else sum(taus) / len(taus))
    return out


def cart(
    pretrained: State,
    experts: Mapping[str, State],
    scaling: float = 2.3,
    rank_ratio: float = 0.16,
    matrices: str = "attn_mlp",
) -> Arrays:
    out = {}
    for name in merged_names(pretrained):
        weights = [array(e[name]) for e in experts.values()]
        mean = sum(weights) / len(weights)
        out[name] = mean
        if is_factorised(name, mean.shape, matrices):
            k = max(1, int(rank_ratio * min(mean.shape)))
            for weight in weights:
                u, s, vt = truncated(weight - mean, k)
                out[name] = out[name] + scaling * (u @ np.diag(s) @ vt)
    return out


ORACLES: dict[str, Callable[..., Arrays]] = {
    "weight_averaging": weight_averaging,
    "task_arithmetic": task_arithmetic,
    "ties_merging": ties_merging,
    "tsv_m": tsv_m,
    "cart": cart,
    "iso_c": iso_c,
}
