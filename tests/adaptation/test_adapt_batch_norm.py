"""Convolutional models: merging coefficients learn through BatchNorm's running statistics, which are merged as weights are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fusionbench_lite as fbl
from fusionbench_lite.adaptation.engine.norms import differentiable
from tests.support.helpers import refused

TASKS = ("a", "b")


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last, self.bare = nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bare(self.last(torch.relu(self.norm(self.first(x))).mean((2, 3))))


def given(seed: int = 0):
    """A model of double precision, experts whose statistics differ, heads and batches."""
    torch.manual_seed(seed)
    model = Convolutions().double().eval()
    pretrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    experts = {
        task: {n: t + 0.3 * torch.rand_like(t) if t.is_floating_point() else t for n, t in pretrained.items()} for task in TASKS
    }
    heads = {task: nn.Linear(6, 3).double() for task in TASKS}
    return model, pretrained, experts, heads, {task: [torch.randn(5, 3, 8, 8).double()] for task in TASKS}


@torch.no_grad()
def entropy_at(coefficient: float, name: str, start: float = 0.3) -> float:
    """The loss where one coefficient of one tensor, that of the first task, is another; by torch's own batch norm."""
    model, pretrained, experts, heads, batches = given()
    merged = {}
    for each, base in pretrained.items():
        scale = dict.fromkeys(TASKS, start) | ({"a": coefficient} if each == name else {})
        merged[each] = base + sum(scale[t] * (experts[t][each] - base) for t in TASKS) if base.is_floating_point() else base
    model.load_state_dict(merged)
    total = 0.0
    for task in TASKS:
        log_probabilities = torch.log_softmax(heads[task](model(batches[task][0])), -1)
        total += float(-(log_probabilities.exp() * log_probabilities).sum(-1).mean())
    return total


@pytest.mark.parametrize("name", ["first.weight", "norm.running_mean", "norm.running_var", "norm.weight", "bare.running_var"])
def test_a_coefficient_moves_down_its_slope(name: str) -> None:
    """Adam's first step goes by the learning rate against the sign of the gradient, which finite differences show."""
    model, pretrained, experts, heads, batches = given()
    adapted = fbl.adapt("adamerging_layerwise", model, pretrained, experts, heads, batches, 1)
    assert float(adapted.losses[0]) == pytest.approx(entropy_at(0.3, name), rel=1e-9)
    slope = (entropy_at(0.3001, name) - entropy_at(0.2999, name)) / 2e-4
    assert abs(slope) > 1e-5
    assert (float(adapted.coefficients[name][0]) < 0.3) == (slope > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_formula_is_that_of_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for x, norm in (
        (torch.randn(4, 5), nn.BatchNorm1d(5)), (torch.randn(4, 5, 7), nn.BatchNorm1d(5, affine=False, eps=0.1)),
        (torch.randn(2, 5, 3, 3), nn.BatchNorm2d(5)), (torch.randn(2, 5, 2, 2, 2), nn.BatchNorm3d(5)),
    ):
        norm.running_mean, norm.running_var = torch.randn(5), torch.rand(5) + 0.1
        x, norm = x.to(dtype), norm.to(dtype).eval()
        with torch.no_grad():
            want = norm(x)
        with differentiable({"running_mean": torch.zeros(5, requires_grad=True)}):
            got = norm(x)
            norm.train()  # statistics of the batch stay torch's own
            assert torch.equal(norm(x), nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps))
        assert got.dtype == dtype
        torch.testing.assert_close(got, want)


def test_exact_gradients_of_statistics() -> None:
    mean, variance = torch.randn(3).double().requires_grad_(), torch.rand(3).double().requires_grad_()
    x = torch.randn(4, 3).double()
    with differentiable({"norm.running_mean": mean}):
        assert torch.autograd.gradcheck(lambda m, v: nn.functional.batch_norm(x, m, v, eps=0.1), (mean, variance))


@pytest.mark.parametrize("method", ["adamerging_taskwise", "adarank_ta", "concrete_am", "pareto_merging", "awd_am"])
def test_other_methods_learn_on_convolutions(method: str) -> None:
    model, pretrained, experts, heads, batches = given()
    adapted = fbl.adapt(method, model, pretrained, experts, heads, {task: batches[task] * 4 for task in TASKS}, 2)
    assert torch.isfinite(adapted.losses).all()


def test_a_router_says_that_it_reads_hidden_states() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            return x.mean((2, 3))

    model = Residual()
    pretrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    experts = {task: {n: t + 0.1 * torch.randn_like(t) for n, t in pretrained.items()} for task in TASKS}
    heads, batches = {task: nn.Linear(3, 3) for task in TASKS}, {task: [torch.randn(4, 3, 8, 8)] for task in TASKS}
    with refused("the last block of Residual returns", r"needs hidden states \[1, N, d\]", "without a router"):
        fbl.adapt("twin_merging", model, pretrained, experts, heads, batches, 1)


def test_checkpointing_that_fails_on_weights_of_another_shape_is_named() -> None:
    """Weights that are not in place any more may have a shape of their own in the backward pass."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self._run, x, use_reentrant=False)

        def _run(self, x: Tensor) -> Tensor:
            features = self.inner(x)
            return features.relu() if features.requires_grad and torch._C._current_graph_task_id() == -1 else features

    model = Checkpointed()
    pretrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    experts = {task: {n: t + 0.1 * torch.randn_like(t) for n, t in pretrained.items()} for task in TASKS}
    heads, batches = {task: nn.Linear(4, 3) for task in TASKS}, {task: [torch.randn(4, 3)] for task in TASKS}
    with refused("Checkpointed runs 'inner' again in the backward pass", "switch activation checkpointing off"):
        fbl.adapt("adamerging_layerwise", model, pretrained, experts, heads, batches, 1)
