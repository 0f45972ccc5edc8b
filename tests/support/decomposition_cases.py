"""Shared by the tests of the decomposition cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fusionbench_lite as fbl
from tests.support.helpers import State, experts_of, rng

NAME = "visual.attn.weight"
SHAPES = [(24, 24), (40, 24), (24, 40)]


def count_decompositions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The eigendecompositions and SVDs that were computed."""
    calls: list[str] = []
    for name in ("eigh", "svd"):
        original = getattr(torch.linalg, name)

        def count(*given, _name=name, _original=original, **named):
            calls.append(_name)
            return _original(*given, **named)

        monkeypatch.setattr(torch.linalg, name, count)
    return calls


def matrix(seed: int = 0, shape: tuple[int, int] = (24, 24), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def model(shape: tuple[int, int] = (24, 24), seed: int = 0) -> tuple[State, dict[str, State]]:
    base = {NAME: matrix(seed, shape), "visual.attn.bias": torch.zeros(shape[0])}
    return base, experts_of(base, 3, seed=10 * seed + 50, size=0.05)


def merged(method: str, base: State, experts: dict[str, State], **given) -> State:
    result = fbl.merge(method, base, experts, **given)
    return {f"{t}/{n}": v for t in experts for n, v in result.state_dict(t).items()}


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def same(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    """Values and memory layout: later products depend on both."""
    return all(torch.equal(a, b) and a.stride() == b.stride() and a.dtype == b.dtype for a, b in zip(one, other, strict=True))
