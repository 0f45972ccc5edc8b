"""Mean absolute gradients against the chain rule by hand; what they accept and refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusionbench_lite.errors import MergeError
from fusionbench_lite.statistics import absolute_gradients
from tests.support.small_models import CLASSES, WIDTH, identity, inputs, perceptron

LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2]) % CLASSES


def by_hand(model, x: np.ndarray, labels: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """(1/N) Σ_B |Σ_{b∈B} ∇ -log p_b| of the perceptron."""
    a, b = model.first, model.second
    first, second = a.weight.detach().numpy(), b.weight.detach().numpy()
    total: dict[str, np.ndarray] = {}
    for start in range(0, len(x), size):
        summed: dict[str, np.ndarray] = {}
        for row, label in zip(x[start : start + size], labels[start : start + size], strict=True):
            hidden = np.tanh(first @ row + a.bias.detach().numpy())
            exponentials = np.exp(second @ hidden + b.bias.detach().numpy())
            outer = exponentials / exponentials.sum() - np.eye(CLASSES)[label]
            inner = (second.T @ outer) * (1 - hidden**2)
            slopes = {"first.weight": np.outer(inner, row), "first.bias": inner, "second.weight": np.outer(outer, hidden),
                      "second.bias": outer}  # fmt: skip
            for name, slope in slopes.items():
                summed[name] = summed.get(name, 0.0) + slope
        for name, value in summed.items():
            total[name] = total.get(name, 0.0) + np.abs(value)
    return {name: value / len(x) for name, value in total.items()}


def pairs(x, labels, size):
    return zip(x.split(size), labels.split(size), strict=True)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_gradients_equal_the_chain_rule(size):
    model, x = perceptron(), inputs(7)
    found = absolute_gradients(model, identity, pairs(x, LABELS, size))
    for name, value in by_hand(model, x.numpy(), LABELS.numpy(), size).items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-6, atol=1e-6 * value.max())
    assert set(found) == {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert found["unused"].tolist() == [0.0, 0.0]
    assert all(tensor.dtype == torch.float32 for tensor in found.values())


def test_single_examples_have_larger_absolute_gradients_than_their_mean():
    model, x = perceptron(), inputs(7)
    single, whole = (absolute_gradients(model, identity, pairs(x, LABELS, size)) for size in (1, 7))
    assert all(bool((single[name] >= whole[name] - 1e-6).all()) for name in single)
    assert float((single["first.weight"] - whole["first.weight"]).max()) > 0.01


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model, x = perceptron().train(), inputs(7)
    model.first.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad(), pytest.raises(MergeError) if fails else torch.no_grad():
        found = absolute_gradients(model, identity, [(x * torch.nan if fails else x, LABELS)])
        assert found["first.weight"].abs().sum() > 0
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches holds no examples"),
        ([inputs(7)], "must be a pair of inputs and labels, got Tensor"),
        ([(inputs(7), LABELS[:3])], r"7 examples has labels of shape \(3,\)"),
        ([(inputs(7), LABELS + 5)], f"labels from 5 to .* do not fit logits of {CLASSES} classes, 0 to {CLASSES - 1}"),
        ([(inputs(7), LABELS - 1)], "labels from -1"),
        ([(inputs(7) * torch.nan, LABELS)], "logits are not finite"),
        ([(torch.zeros(0, WIDTH), LABELS[:0])], "holds no examples"),
    ],
)
def test_bad_batches_are_refused(batches, message):
    with pytest.raises(MergeError, match=message):
        absolute_gradients(perceptron(), identity, batches)
