"""Calling any merging method, whatever inputs it needs and whether it keeps one model per task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import fusionbench_lite as fbl
from tests.support.helpers import State, distance, rng, touched
from tests.support.key_sets import fisher_of, gram_of

PAIRS = ("slerp", "nuslerp")
"""Methods that take exactly two experts."""


def arguments(method: str, base: State, tasks: list[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters `given`, functions called with the tasks, statistics added where the method needs them."""
    given = {k: v(tasks) if callable(v) else v for k, v in given.items()}
    if method == "fisher_merging":
        given.setdefault("fisher", fisher_of(base, tasks))
    if method == "regmean":
        given.setdefault("gram", gram_of(base, tasks))
    if method == "tatr":
        given.setdefault("gradients", fisher_of(base, tasks))
    return given


def merge(method: str, base: State, experts: Mapping[str, State], /, **given: Any) -> State:
    """The state dict of a method that makes one model."""
    return fbl.merge(method, base, experts, **arguments(method, base, list(experts), given)).state_dict()


def models(method: str, base: State, experts: Mapping[str, State], /, **given: Any) -> dict[str, State]:
    """The merged state dicts: {task: ...}, or {"": ...} where all tasks share one model."""
    merged = fbl.merge(method, base, experts, **arguments(method, base, list(experts), given))
    return {t: merged.state_dict(t) for t in experts} if merged.per_task else {"": merged.state_dict()}


def draw(seed: int, dtype: torch.dtype = torch.float64) -> State:
    """A handful of small tensors of every rank."""
    g = rng(seed)
    shapes = {"a.weight": (4, 4), "b.weight": (6, 3), "b.bias": (6,), "conv": (3, 1, 2, 3), "one": (1,)}
    return {n: torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for n, s in shapes.items()}


def update(state: State, base: State) -> State:
    return {n: state[n] - base[n] for n in base}


def zeros_like(state: State) -> State:
    return {n: torch.zeros_like(v) for n, v in state.items()}


def close(
    state: State, other: Mapping[str, Tensor], tolerance: float = 1e-9, names: list[str] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Deviations relative to the largest entry of `other`, or of `beside` where that may cancel to little."""
    for name in names or touched(state):
        error = distance(state[name], other[name])
        if beside is not None:
            own, largest = (max(float(v[name].abs().max()), 1e-3) for v in (other, beside))
            error *= own / max(own, largest)
        assert error <= tolerance, f"{name}: {error:.2e}"


def all_close(a: Mapping[str, State], b: Mapping[str, State], tolerance: float = 1e-9) -> None:
    assert set(a) == set(b)
    for task in a:
        close(a[task], b[task], tolerance)
