"""WEMoE and Twin-Merging against oracles that materialise every example's model, and laws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fusionbench_lite as fbl
from tests.oracles import routing
from tests.support.adapter_checks import check_encode, check_learned, check_losses, identify
from tests.support.helpers import check_passthrough, distance, setting, touched
from tests.support.small_models import FlatPerceptron, NoBlocks, Transformer, small_setting

DOUBLE = torch.float64
METHODS = ["wemoe", "twin_merging"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])
each = pytest.mark.parametrize("method", METHODS)
SMALL = {"wemoe": {}, "twin_merging": {"rank_ratio": 0.5, "router": "entropy"}}


def run(method, s, steps, **options):
    return fbl.adapt(method, *s.arguments(), steps, **options)


def compare(method: str, s, steps: int, tolerance: float, **options):
    """Run both; routers, losses, routed features and base weights have to agree. Returns (adapted, outcome)."""
    want = getattr(routing, method)(s.model, s.pretrained, s.experts, s.heads, s.batches, steps, **options)
    got = run(method, s, steps, **options)
    assert set(got.learned) == set(want.learned)
    check_learned(*without_cancelled(method, got.learned, want.learned), tolerance, next(iter(s.pretrained.values())).dtype)
    check_losses(got.losses, want.losses, max(10 * tolerance, 1e-9))
    check_encode(got, want.encode, s, max(10 * tolerance, 1e-9))
    check_passthrough(got.state_dict(), s.pretrained)
    assert all(distance(got.state_dict()[n], want.base[n]) <= max(tolerance, 1e-12) for n in touched(s.pretrained))
    return got, want


def without_cancelled(method: str, *learned: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Without Twin's biases that batch normalisation cancels: their gradient is 0 but for rounding, and Adam blows that up.

    Adam divides it by its eps of 1e-8: 1e-15 moves a bias by 1e-7 of the rate. What they do to features is compared.
    """
    drop = ("0/bias", "1/bias") if method == "twin_merging" else ()
    return [{n: v for n, v in values.items() if n not in drop} for values in learned]


CASES = [
    ("wemoe", {}),
    ("wemoe", {"routing": "batch"}),
    ("wemoe", {"schedule": "constant", "lr": 0.01, "seed": 4}),
    ("wemoe", {"routing": "batch", "schedule": "constant", "scaling": 0.5}),
    ("twin_merging", {}),
    ("twin_merging", {"rank_ratio": 0.5, "lr": 0.01, "seed": 4, "dropout": 0}),
    ("twin_merging", {"router": "entropy"}),
    ("twin_merging", {"router": "entropy", "rank_ratio": 0.5, "lr": 0.01, "scaling": 0.2, "dropout": 0.3}),
    ("twin_merging", {"router": "entropy", "rank_ratio": 1.0}),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
@DTYPES
def test_ten_steps(case, dtype):
    s = small_setting(Transformer(pair=dtype == DOUBLE), tasks=3, dtype=dtype)
    compare(case[0], s, 10, 1e-9 if dtype == DOUBLE else 1e-5, **case[1])


@each
@pytest.mark.parametrize("tasks", [1, 2])
def test_other_task_counts(method, tasks):
    compare(method, small_setting(tasks=tasks, seed=2), 5, 1e-9, lr=0.01, **SMALL[method])


@each
def test_other_models(method):
    """An encoder with open_clip's names and unused tensors; a model without blocks, whose feature feeds Twin's router."""
    compare(method, setting(dtype=DOUBLE, blocks=2), 4, 1e-9, **SMALL[method])
    compare(method, small_setting(NoBlocks()), 4, 1e-9, **SMALL[method])
    if method == "twin_merging":
        compare(method, small_setting(FlatPerceptron(), shape=(3,)), 4, 1e-9)


class Mixed(nn.Module):
    """A perceptron with more in it than Linear layers: transformers' Conv1D and a normalisation, which is not routed."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.mlp = nn.Sequential(nn.LayerNorm(3), Conv1D(4, 3), nn.Tanh(), nn.Linear(4, 3))
        self.proj = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj((x + self.mlp(x)).mean(1))


def test_what_is_routed_inside_a_perceptron():
    compare("wemoe", small_setting(Mixed()), 4, 1e-9, lr=0.05)
