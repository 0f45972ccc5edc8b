"""Float64 oracles of doGe TA, AWD and WUDI: autograd on the explicit unknown, dense projectors, torch.optim.

Conventions as in `data_free.py`. Slow on purpose: nothing is precomputed, nothing has a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from tests.oracles.data_free import Arrays, State, array, is_factorised, merged_names, task_vectors
from tests.oracles.spectral import numerical_rank

# ---------------------------------------------------------------- doGe


def shared_projector(taus: list[np.ndarray], rank: str, divisor: int) -> np.ndarray:
    """The m x m projector on the k directions that the left singular vectors of the tasks share most.

    Directions that no task votes for are not directions: k never exceeds the rank of the votes.
    """
    m, p = taus[0].shape[0], min(taus[0].shape)
    votes = []
    for tau in taus:
        if tau.any():
            r = p // len(taus)
            u = np.linalg.svd(tau, full_matrices=False)[0]
            votes.append(u[:, : min(r, numerical_rank(tau)) if rank == "numerical" else r])
    if not votes or sum(v.shape[1] for v in votes) == 0:
        return np.zeros((m, m))
    u, s, _ = np.linalg.svd(np.concatenate(votes, axis=1), full_matrices=False)
    k = min(p // divisor, int((s > 1e-6).sum()))
    return u[:, :k] @ u[:, :k].T


def doge_loss(tau: torch.Tensor, lambdas: torch.Tensor, delta: torch.Tensor, loss: str) -> torch.Tensor:
    """Squared inner products of every task vector with its own deviation from the merged one. `tau` is [T, m, n]."""
    merged = sum(lambdas[t] * (tau[t] + delta) for t in range(len(tau)))
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(tau)):
        rows = (tau[t] * (tau[t] - merged)).sum(1)
        total = total + ((rows**2).sum() if loss == "row" else rows.sum() ** 2)
    return total


def doge_delta(
    taus: list[np.ndarray], lambdas: list[float], projector: np.ndarray, steps: int, lr: float, projection: str, loss: str
) -> tuple[np.ndarray, list[float]]:
    """The modification after `steps` Adam steps, and the loss before each step and at the end."""
    tau = torch.from_numpy(np.stack(taus))
    weights, shared = torch.tensor(lambdas, dtype=torch.float64), torch.from_numpy(projector)
    delta = torch.zeros_like(tau[0], requires_grad=True)
    adam = torch.optim.Adam([delta], lr=lr)
    losses = []
    for _ in range(steps):
        adam.zero_grad()
        value = doge_loss(tau, weights, delta, loss)
        value.backward()
        if projection == "orthogonal":
            delta.grad = delta.grad - shared @ delta.grad
        elif projection == "onto":
            delta.grad = shared @ delta.grad
        else:
            assert projection == "none"
        adam.step()
        losses.append(float(value.detach()))
    with torch.no_grad():
        losses.append(float(doge_loss(tau, weights, delta, loss)))
    return delta.detach().numpy(), losses


def doge_ta(
    pretrained: State,
    experts: Mapping[str, State],
    eta: float = 0.07,
    keep: float = 0.3,
    steps: int = 400,
    lr: float = 1e-4,
    subspace_divisor: int = 6,
    matrices: str = "encoder_linear",
    rank: str = "fixed",
    coefficients: str = "layer",
    scaling: float = 0.3,
    projection: str = "orthogonal",
    loss: str = "row",
) -> Arrays:
    names = merged_names(pretrained)
    out = {name: array(pretrained[name]) for name in names}
    selected = [n for n in names if is_factorised(n, tuple(pretrained[n].shape), matrices)]
    if not selected:
        return out
    taus = {n: task_vectors(pretrained, experts, n) for n in selected}
    count = len(experts)

    def coefficient(name: str, t: int) -> float:
        if coefficients == "uniform":
            return scaling
        if coefficients == "layer":
            norm = float(np.linalg.norm(taus[name][t]))
        else:
            assert coefficients == "task"
            norm = float(np.sqrt(np.mean([np.sum(taus[n][t] ** 2) for n in selected])))
        return eta / norm if norm > 0 else 0.0

    kept = masks(pretrained, experts, selected, keep)
    for name in selected:
        lambdas = [coefficient(name, t) for t in range(count)]
        projector = shared_projector(taus[name], rank, subspace_divisor)
        delta, _ = doge_delta(taus[name], lambdas, projector, steps, lr, projection, loss)
        for t in range(count):
            out[name] = out[name] + lambdas[t] * kept[name][t] * (taus[name][t] + delta)
    return out


def masks(pretrained: State, experts: Mapping[str, State], names: list[str], keep: float) -> dict[str, list[np.ndarray]]:
    """{name: [T boolean arrays]}: the global TIES mask of every untrimmed task vector, as the work precision sees it."""
    work = torch.float64 if any(pretrained[n].dtype == torch.float64 for n in names) else torch.float32
    out: dict[str, list[np.ndarray]] = {n: [] for n in names}
    for expert in experts.values():
        parts = [(expert[n].to(work) - pretrained[n].to(work)).double().numpy() for n in names]
        flat = np.concatenate([np.abs(part).ravel() for part in parts])
        k = flat.size - int(keep * flat.size)
        kept = flat >= np.sort(flat)[k - 1] if k else np.ones(flat.size, dtype=bool)
        start = 0
        for name, part in zip(names, parts, strict=True):
            out[name].append(kept[start : start + part.size].reshape(part.shape))
            start += part.size
    return out


# ---------------------------------------------------------------- AWD


def awd_loss(vectors: list[torch.Tensor], delta: torch.Tensor, alpha: float) -> torch.Tensor:
    """Mean absolute cosine over ordered pairs of tau_t - delta, plus alpha times the norm of delta.

    A cosine with a zero vector is 0 and has no gradient.
    """
    count = len(vectors)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(count):
        for j in range(count):
            a, b = vectors[i] - delta, vectors[j] - delta
            if i != j and bool(a.any()) and bool(b.any()):
                total = total + torch.abs((a * b).sum() / (torch.sqrt((a * a).sum()) * torch.sqrt((b * b).sum())))
    total = total / (count * (count - 1))
    if bool(delta.detach().any()):  # the gradient of the norm at 0 is 0
        total = total + alpha * torch.sqrt((delta * delta).sum())
    return total


def awd_delta(
    taus: list[np.ndarray], alpha: float, lr: float, steps: int, optimizer: str
) -> tuple[np.ndarray, list[float]]:
    """The redundant vector of flat task vectors, and the loss before each step and at the end."""
    vectors = [torch.from_numpy(tau) for tau in taus]
    delta = torch.zeros_like(vectors[0], requires_grad=True)
    if len(taus) == 1 or taus[0].size == 1:  # cosines of single entries are 1 or -1, whatever δ: no gradient but rounding
        return delta.detach().numpy(), []
    kind = {"gd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    stepper = kind([delta], lr=lr)
    losses = []
    for _ in range(steps):
        stepper.zero_grad()
        value = awd_loss(vectors, delta, alpha)
        if value.requires_grad:
            value.backward()
        else:
            delta.grad = torch.zeros_like(delta)
        stepper.step()
        losses.append(float(value.detach()))
    losses.append(float(awd_loss(vectors, delta.detach(), alpha)))
    return delta.detach().numpy(), losses


def awd_ta(
    pretrained: State,
    experts: Mapping[str, State],
    alpha: float = 0.1,
    lr: float = 0.01,
    steps: int = 300,
    scaling: float = 0.3,
    group: str = "tensor",
    optimizer: str = "gd",
) -> Arrays:
    names = merged_names(pretrained)
    out: Arrays = {}
    groups = [[n] for n in names] if group == "tensor" else [names]
    assert group in ("tensor", "global")
    for members in groups:
        parts = {n: task_vectors(pretrained, experts, n) for n in members}
        flat = [np.concatenate([parts[n][t].ravel() for n in members]) for t in range(len(experts))]
        delta, _ = awd_delta(flat, alpha, lr, steps, optimizer)
        merged, start = sum(tau - delta for tau in flat), 0
        for name in members:
            base = array(pretrained[name])
            out[name] = base + scaling * merged[start : start + base.size].reshape(base.shape)
            start += base.size
    return out


# ---------------------------------------------------------------- WUDI


def wudi_loss(taus: list[torch.Tensor], merged: torch.Tensor) -> torch.Tensor:
    """Interference of the merged matrix with every task, measured on the task's own rows; zero tasks are skipped."""
    total = torch.zeros((), dtype=torch.float64)
    for tau in taus:
        if bool(tau.any()):
            total = total + ((merged - tau) @ tau.T).square().sum() / tau.square().sum()
    return total


def wudi_matrix(taus: list[np.ndarray], steps: int, lr: float) -> tuple[np.ndarray, list[float]]:
    vectors = [torch.from_numpy(tau) for tau in taus]
    merged = torch.stack(vectors).sum(0).clone().requires_grad_(True)
    if not any(tau.any() for tau in taus):
        return merged.detach().numpy(), []
    adam = torch.optim.Adam([merged], lr=lr)
    losses = []
    for _ in range(steps):
        adam.zero_grad()
        value = wudi_loss(vectors, merged)
        value.backward()
        adam.step()
        losses.append(float(value.detach()))
    losses.append(float(wudi_loss(vectors, merged.detach())))
    return merged.detach().numpy(), losses


def wudi(pretrained: State, experts: Mapping[str, State], steps: int = 300, lr: float = 1e-5) -> Arrays:
    out = {}
    for name in merged_names(pretrained):
        taus = task_vectors(pretrained, experts, name)
        update = wudi_matrix(taus, steps, lr)[0] if taus[0].ndim == 2 else np.mean(taus, axis=0)
        out[name] = array(pretrained[name]) + update
    return out


ORACLES: dict[str, Callable[..., Arrays]] = {"doge_ta": doge_ta, "awd_ta": awd_ta, "wudi": wudi}
