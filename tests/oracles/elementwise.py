"""Float64 numpy oracles of the elementwise methods; `ORACLES` also lists those of `tests.oracles.weighted`.

The conventions are those of `tests.oracles.data_free`; methods that keep one model per task return {task: {name: array}}.
Wherever a comparison decides (trimming, masks, signs, ranks, quantiles), the task vector is taken in the work precision
(float32, or float64 for a float64 base) and everything after it is float64. Tied tensors are counted as often as listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from tests.oracles.data_free import Arrays, State, array, merged_names, ties_vector
from tests.oracles.weighted import fisher_merging, metagpt, model_stock, nuslerp, regmean, slerp

PerTask = dict[str, Arrays]


def seen_task_vectors(pretrained: State, experts: Mapping[str, State]) -> PerTask:
    """τ_t as the work precision sees it, {task: {name: array}}."""
    out: PerTask = {}
    for task, expert in experts.items():
        out[task] = {}
        for name in merged_names(pretrained):
            work = torch.float64 if pretrained[name].dtype == torch.float64 else torch.float32
            out[task][name] = array(expert[name].detach().to(work) - pretrained[name].detach().to(work))
    return out


def flat(vectors: Arrays) -> np.ndarray:
    return np.concatenate([v.ravel() for v in vectors.values()])


def like(vector: np.ndarray, shapes: Arrays) -> Arrays:
    """Cut a flat vector into the names and shapes of `shapes`."""
    out, start = {}, 0
    for name, v in shapes.items():
        out[name] = vector[start : start + v.size].reshape(v.shape)
        start += v.size
    return out


def moved(pretrained: State, update: Arrays, scaling: float = 1.0) -> Arrays:
    return {n: array(pretrained[n]) + scaling * update[n] for n in merged_names(pretrained)}


def total(taus: PerTask) -> Arrays:
    names = next(iter(taus.values()))
    return {n: np.sum([tau[n] for tau in taus.values()], axis=0) for n in names}


def ties(taus: PerTask, keep: float = 0.2, reduce: str = "sum", virtual_zeros: int = 0) -> Arrays:
    merged = ties_vector([flat(tau) for tau in taus.values()], keep, reduce, virtual_zeros)
    return like(merged, next(iter(taus.values())))


# ---------------------------------------------------------------- DARE, from an explicit mask

Masks = Mapping[str, Mapping[str, np.ndarray]]


def dropped(taus: PerTask, masks: Masks, drop_rate: float, dtype: torch.dtype) -> PerTask:
    """τ_t M_t / (1 - p), rounded to the work precision because TIES compares it with a threshold."""
    out: PerTask = {}
    for task, tau in taus.items():
        out[task] = {}
        for name, value in tau.items():
            rescaled = torch.from_numpy(value).to(dtype) / (1 - drop_rate)
            out[task][name] = array(rescaled) * np.asarray(masks[task][name], dtype=np.float64)
    return out


def ta_dare(
    pretrained: State, experts: Mapping[str, State], masks: Masks, drop_rate: float = 0.5, scaling: float = 0.3
) -> Arrays:
    taus = dropped(seen_task_vectors(pretrained, experts), masks, drop_rate, torch.float64)
    return moved(pretrained, total(taus), scaling)


def ties_dare(
    pretrained: State,
    experts: Mapping[str, State],
    masks: Masks,
    drop_rate: float = 0.5,
    keep: float = 0.2,
    reduce: str = "sum",
    scaling: float = 0.3,
    virtual_zeros: int = 0,
) -> Arrays:
    names = merged_names(pretrained)
    work = torch.float64 if any(pretrained[n].dtype == torch.float64 for n in names) else torch.float32
    taus = dropped(seen_task_vectors(pretrained, experts), masks, drop_rate, work)
    return moved(pretrained, ties(taus, keep, reduce, virtual_zeros), scaling)


def survivors(merged: State, tau: State, drop_rate: float) -> dict[str, np.ndarray]:
    """The mask of a DARE result with base zero, one expert `tau` and scale 1.

    Asserts that each entry is 0 or exactly τ/(1 - p); where 1 - p is not a power of two, one rounding is allowed.
    """
    masks = {}
    exact = math.frexp(1 - drop_rate)[0] == 0.5
    for name in merged_names(merged):
        got, want = array(merged[name]), array(tau[name]) / (1 - drop_rate)
        masks[name] = got != 0
        slack = 0.0 if exact else 2 * torch.finfo(merged[name].dtype).eps
        assert (np.abs(got - want)[masks[name]] <= slack * np.abs(want)[masks[name]]).all(), name
        assert (array(tau[name])[masks[name]] != 0).all(), name
    return masks


# ---------------------------------------------------------------- TALL-masks, Consensus


def localisation_masks(taus: PerTask, merged: Arrays, threshold: float | Mapping[str, float]) -> PerTask:
    """1[ |τ_t| > λ_t |τ_mt - τ_t| ], strict."""
    out: PerTask = {}
    for task, tau in taus.items():
        limit = threshold[task] if isinstance(threshold, Mapping) else threshold
        out[task] = {n: (np.abs(v) > limit * np.abs(merged[n] - v)).astype(np.float64) for n, v in tau.items()}
    return out


def multitask_vector(taus: PerTask, base: str, virtual_zeros: int) -> Arrays:
    return total(taus) if base == "ta" else ties(taus, 0.2, "sum", virtual_zeros)


def tall_masks(
    pretrained: State,
    experts: Mapping[str, State],
    threshold: float | Mapping[str, float] = 0.4,
    base: str = "ta",
    virtual_zeros: int = 0,
) -> PerTask:
    taus = seen_task_vectors(pretrained, experts)
    merged = multitask_vector(taus, base, virtual_zeros)
    masks = localisation_masks(taus, merged, threshold)
    return {t: moved(pretrained, {n: m * merged[n] for n, m in mask.items()}) for t, mask in masks.items()}


def consensus(
    pretrained: State,
    experts: Mapping[str, State],
    base: str,
    threshold: float | Mapping[str, float] = 0.4,
    min_tasks: int = 2,
    scaling: float = 0.3,
    virtual_zeros: int = 0,
) -> Arrays:
    taus = seen_task_vectors(pretrained, experts)
    merged = multitask_vector(taus, base, virtual_zeros)
    count = total(localisation_masks(taus, merged, threshold))
    return moved(pretrained, {n: np.where(count[n] >= min_tasks, v, 0.0) for n, v in merged.items()}, scaling)


def consensus_ta(pretrained: State, experts: Mapping[str, State], **h: object) -> Arrays:
    return consensus(pretrained, experts, "ta", **h)


def consensus_ties(pretrained: State, experts: Mapping[str, State], **h: object) -> Arrays:
    return consensus(pretrained, experts, "ties", **h)


# ---------------------------------------------------------------- EMR-Merging


def elect(column: list[float]) -> tuple[float, list[bool]]:
    """One coordinate: the unified entry and which tasks agree with its sign."""
    sign = 1.0 if math.fsum(column) > 0 else -1.0
    agreeing = [value * sign > 0 for value in column]
    return sign * max((abs(v) for v, ok in zip(column, agreeing, strict=True) if ok), default=0.0), agreeing


def emr_parts(taus: PerTask, rescale: str = "tensor_mean") -> tuple[Arrays, PerTask, dict[str, float]]:
    """The unified vector, the masks and the rescalers."""
    tasks = list(taus)
    unified: Arrays = {}
    masks: PerTask = {t: {} for t in tasks}
    for name, first in taus[tasks[0]].items():
        cells = [elect([float(taus[t][name].ravel()[j]) for t in tasks]) for j in range(first.size)]
        unified[name] = np.array([value for value, _ in cells]).reshape(first.shape)
        for i, task in enumerate(tasks):
            masks[task][name] = np.array([float(ok[i]) for _, ok in cells]).reshape(first.shape)
    measure = np.mean if rescale == "tensor_mean" else np.sum
    factors = {}
    for task in tasks:
        own = math.fsum(float(measure(np.abs(v))) for v in taus[task].values())
        kept = math.fsum(float(measure(np.abs(masks[task][n] * v))) for n, v in unified.items())
        factors[task] = own / kept if kept > 0 else 1.0
    return unified, masks, factors


def emr_merging(pretrained: State, experts: Mapping[str, State], rescale: str = "tensor_mean") -> PerTask:
    unified, masks, factors = emr_parts(seen_task_vectors(pretrained, experts), rescale)
    return {
        t: moved(pretrained, {n: mask[n] * v for n, v in unified.items()}, factors[t]) for t, mask in masks.items()
    }


# ---------------------------------------------------------------- PCB-Merging


def order_statistic(values: np.ndarray, index: int) -> float:
    """The index-th smallest, from 0; an index past either end is the end."""
    return sorted(float(v) for v in values)[min(max(index, 0), len(values) - 1)]


def clipped(x: np.ndarray, low: float, high: float) -> np.ndarray:
    d = len(x)
    return np.clip(x, order_statistic(x, math.floor(d * low)), order_statistic(x, math.floor(d * (1 - high) - 1)))


def norm01(x: np.ndarray) -> np.ndarray:
    width = x.max() - x.min()
    return (x - x.min()) / width if width > 0 else np.zeros_like(x)


def pcb_parts(
    taus: list[np.ndarray], ratio: float, variant: str, virtual_zeros: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The clipped vectors τ̂_t and the weights s_t of flat task vectors, virtual zeros at the end."""
    raw = [np.concatenate([tau, np.zeros(virtual_zeros)]) for tau in taus]
    edge = 1e-4 if variant == "A" else 0.01
    heights = [clipped(np.abs(tau), edge, edge) for tau in raw]
    nu = [norm01(a) for a in heights]
    signed = [np.sign(tau) * v for tau, v in zip(raw, nu, strict=True)]
    weights = []
    for t, tau in enumerate(raw):
        intra = np.exp(len(raw) * nu[t] ** 2)
        if variant == "A":
            inter = np.tanh(tau * sum(raw))
        elif variant == "B":
            inter = np.tanh(tau * sum(signed))
        else:
            inter = sum(np.tanh(signed[t] * other) for other in signed)
        weights.append(norm01(clipped(intra * inter, 1 - ratio, 0)))
    return [np.sign(tau) * a for tau, a in zip(raw, heights, strict=True)], weights


def pcb_merging(
    pretrained: State,
    experts: Mapping[str, State],
    ratio: float = 0.05,
    scaling: float = 1.2,
    variant: str = "B",
    virtual_zeros: int = 0,
) -> Arrays:
    taus = seen_task_vectors(pretrained, experts)
    shapes = next(iter(taus.values()))
    values, weights = pcb_parts([flat(tau) for tau in taus.values()], ratio, variant, virtual_zeros)
    mass = sum(v * w for v, w in zip(values, weights, strict=True))
    return moved(pretrained, like(mass / np.maximum(sum(weights), 1e-12), shapes), scaling)


# ---------------------------------------------------------------- Breadcrumbs, MagMax


def middle_of(row: np.ndarray, keep: float, outliers: float) -> np.ndarray:
    """Drop the ⌊γn⌋ largest magnitudes, keep the next ⌊βn⌋; equal magnitudes in order of their index."""
    n = len(row)
    ranked = sorted(range(n), key=lambda j: (-abs(float(row[j])), j))
    first = int(outliers * n)
    chosen = ranked[first : first + int(keep * n)]
    return np.array([float(row[j]) if j in chosen else 0.0 for j in range(n)])


def breadcrumbs(
    pretrained: State,
    experts: Mapping[str, State],
    keep: float = 0.15,
    outliers: float = 0.006,
    scaling: float = 0.2,
    granularity: str = "row",
) -> Arrays:
    taus = seen_task_vectors(pretrained, experts)
    for tau in taus.values():
        for name, value in tau.items():
            if not value.ndim:  # no row to rank: the task vector stays whole
                continue
            rows = value.reshape(-1, value.shape[-1] if granularity == "row" else value.size)
            tau[name] = np.stack([middle_of(row, keep, outliers) for row in rows]).reshape(value.shape)
    return moved(pretrained, total(taus), scaling)


def magmax(pretrained: State, experts: Mapping[str, State], scaling: float = 0.5) -> Arrays:
    taus = seen_task_vectors(pretrained, experts)
    update: Arrays = {}
    for name in merged_names(pretrained):
        for tau in taus.values():
            best = update.get(name, np.zeros_like(tau[name]))
            update[name] = np.where(np.abs(tau[name]) >= np.abs(best), tau[name], best)
    return moved(pretrained, update, scaling)


# ---------------------------------------------------------------- TATR


def repeated_names(pretrained: State, experts: Mapping[str, State]) -> set[str]:
    """The names of tensors that are tied to an earlier one, and stay so in every expert."""
    first: dict[int, str] = {}
    again = set()
    for name in merged_names(pretrained):
        original = first.setdefault(pretrained[name].data_ptr(), name)
        if original != name and all(torch.equal(e[original], e[name]) for e in experts.values()):
            again.add(name)
    return again


def conflicts(taus: PerTask, slopes: Mapping[str, Mapping[str, np.ndarray]], name: str) -> np.ndarray:
    """Ω of one tensor: the mean over ordered pairs of tasks of |∇L_j| |τ_t|."""
    pairs = [(j, t) for j in taus for t in taus if j != t]
    total = [np.abs(slopes[j][name]) * np.abs(taus[t][name]) for j, t in pairs]
    return np.sum(total, axis=0) / len(pairs) if pairs else np.zeros_like(next(iter(taus.values()))[name])


def tatr(
    pretrained: State, experts: Mapping[str, State], gradients: Mapping[str, State] | None = None, left_out: float = 0.01,
    scaling: float = 0.3,
) -> Arrays:
    taus = seen_task_vectors(pretrained, experts)
    slopes: Mapping[str, Mapping[str, np.ndarray]] = taus
    if gradients is not None:
        slopes = {t: {n: array(gradients[t][n]) for n in taus[t]} for t in taus}
    omega = {n: conflicts(taus, slopes, n) for n in merged_names(pretrained)}
    again = repeated_names(pretrained, experts)
    listed = sorted((float(v) for n, values in omega.items() if n not in again for v in values.ravel()), reverse=True)
    count = int(left_out * len(listed))
    border = max(listed[count - 1], 5e-324) if count else math.inf
    # Equal values are equal whatever order their terms were added in.
    update = {n: np.where(omega[n] >= border * (1 - 1e-12), 0.0, value) for n, value in total(taus).items()}
    return moved(pretrained, update, scaling)


ORACLES: dict[str, Callable[..., Arrays]] = {
    "tatr": tatr,
    "tatr_zero_shot": tatr,
    "consensus_ta": consensus_ta,
    "consensus_ties": consensus_ties,
    "pcb_merging": pcb_merging,
    "breadcrumbs": breadcrumbs,
    "magmax": magmax,
    "fisher_merging": fisher_merging,
    "regmean": regmean,
    "metagpt": metagpt,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "model_stock": model_stock,
}
PER_TASK_ORACLES: dict[str, Callable[..., PerTask]] = {"tall_masks": tall_masks, "emr_merging": emr_merging}
