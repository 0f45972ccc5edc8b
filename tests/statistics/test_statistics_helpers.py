"""Fisher information against loops written out by hand; what both statistics accept and refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fusionbench_lite import models
from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.heads import ZeroShotHead, random_embeddings
from fusionbench_lite.statistics import diagonal_fisher, gram_matrices
from tests.support.small_models import CLASSES, HIDDEN, WIDTH, identity, inputs, perceptron


def _gradients(model: nn.Module, x: np.ndarray, outer: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of a scalar whose derivative by the logits of the example x is `outer`, by the chain rule."""
    first, second = model.first, model.second
    hidden = np.tanh(first.weight.detach().numpy() @ x + first.bias.detach().numpy())
    inner = (second.weight.detach().numpy().T @ outer) * (1 - hidden**2)
    return {
        "first.weight": np.outer(inner, x), "first.bias": inner, "second.weight": np.outer(outer, hidden), "second.bias": outer,
    }


def _probabilities(model: nn.Module, x: np.ndarray) -> np.ndarray:
    hidden = np.tanh(model.first.weight.detach().numpy() @ x + model.first.bias.detach().numpy())
    exponentials = np.exp(model.second.weight.detach().numpy() @ hidden + model.second.bias.detach().numpy())
    return exponentials / exponentials.sum()


def _by_hand(model: nn.Module, batches: list[np.ndarray], variant: str) -> dict[str, np.ndarray]:
    total, seen = {}, 0
    for batch in batches:
        summed = {}
        for x in batch:
            seen += 1
            p = _probabilities(model, x)
            for c in range(CLASSES):
                of_log_p = np.eye(CLASSES)[c] - p  # d log p_c / d logits
                if variant == "batch":
                    for name, g in _gradients(model, x, np.sqrt(p[c]) * of_log_p).items():
                        summed[name] = summed.get(name, 0.0) + g
                else:
                    for name, g in _gradients(model, x, of_log_p).items():
                        total[name] = total.get(name, 0.0) + p[c] * g**2
        for name, g in summed.items():
            total[name] = total.get(name, 0.0) + g**2
    return {name: value / seen for name, value in total.items()}


def _same(found, expected, tolerance=1e-6):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=tolerance, atol=tolerance * np.abs(value).max())


# ---------------------------------------------------------------- Fisher


@pytest.mark.parametrize("variant", ["batch", "true"])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_fisher_equals_a_loop_over_examples_and_classes(variant, size):
    model, x = perceptron(), inputs()
    found = diagonal_fisher(model, identity, x.split(size), variant=variant)
    _same(found, _by_hand(model, [b.numpy() for b in x.split(size)], variant))
    floating = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert set(found) == floating
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert found["unused"].tolist() == [0.0, 0.0]
    assert found["running"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("variant", ["batch", "true"])
def test_fisher_of_a_vision_transformer_equals_one_backward_pass_per_example(variant):
    torch.manual_seed(0)
    model = models.build("vit_mini")
    head = ZeroShotHead(random_embeddings(3, 64, 0), 20.0)
    x = torch.randn(5, 3, 32, 32)
    found = diagonal_fisher(model, head, x.split(2), variant=variant)
    exact, head = models.build("vit_mini").double().eval(), head.double()
    exact.load_state_dict(model.state_dict())
    expected = {name: torch.zeros_like(p) for name, p in exact.named_parameters()}
    for batch in x.double().split(2):
        summed = {name: torch.zeros_like(p) for name, p in exact.named_parameters()}
        for image in batch:
            p = head(exact(image[None])).softmax(-1).detach()[0]
            for c in range(3):
                exact.zero_grad()
                head(exact(image[None])).softmax(-1)[0, c].log().backward()
                for name, parameter in exact.named_parameters():
                    if variant == "batch":
                        summed[name] += p[c].sqrt() * parameter.grad
                    else:
                        expected[name] += p[c] * parameter.grad**2
        for name in summed:
            expected[name] += summed[name] ** 2
    assert set(found) == set(expected)
    for name in found:
        wanted = expected[name] / 5
        # Sums of terms that cancel, in float32: compared with the largest entry of the tensor.
        assert (found[name] - wanted).abs().max() <= 2e-4 * wanted.abs().max(), name


def test_batch_fisher_depends_on_batches_and_true_fisher_does_not():
    model, x = perceptron(), inputs(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    batch = {size: diagonal_fisher(model, identity, x.split(size)) for size in (1, 4)}
    ratio = (batch[4]["first.weight"] / batch[1]["first.weight"]).flatten()
    assert ratio.max() / ratio.min() > 1.5  # no rescaling turns one into the other
    other = diagonal_fisher(model, identity, x[order].split(4))
    assert not torch.allclose(other["first.weight"], batch[4]["first.weight"], rtol=1e-2)
    true = [diagonal_fisher(model, identity, y.split(s), variant="true") for y, s in ((x, 1), (x, 4), (x[order], 3))]
    for name in true[0]:
        torch.testing.assert_close(true[1][name], true[0][name], rtol=1e-6, atol=0)
        torch.testing.assert_close(true[2][name], true[0][name], rtol=1e-6, atol=0)


def test_order_within_a_batch_and_order_of_batches_do_not_matter():
    model, x = perceptron(), inputs(6)
    first = diagonal_fisher(model, identity, [x[:3], x[3:]])
    second = diagonal_fisher(model, identity, [x[[5, 4, 3]], x[[1, 0, 2]]])
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-9)


def test_both_variants_agree_with_finite_differences():
    model, x = perceptron(), inputs(3)
    p = np.array([_probabilities(model, row) for row in x.numpy()])
    bias, step, gradient, true = model.second.bias, 1e-5, [], []
    for c in range(CLASSES):
        shifted = []
        for sign in (1, -1):
            with torch.no_grad():
                bias[c] += sign * step
            shifted.append(np.log([_probabilities(model, row) for row in x.numpy()]))
            with torch.no_grad():
                bias[c] -= sign * step
        slope = (shifted[0] - shifted[1]) / (2 * step)
        gradient.append((np.sqrt(p) * slope).sum())
        true.append((p * slope**2).sum() / 3)
    np.testing.assert_allclose(diagonal_fisher(model, identity, [x])["second.bias"], np.square(gradient) / 3, rtol=1e-5)
    np.testing.assert_allclose(diagonal_fisher(model, identity, [x], variant="true")["second.bias"], true, rtol=1e-5)


def test_gradients_that_share_memory_are_squared_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x + (self.a + self.b)

    found = diagonal_fisher(Twice(), identity, [torch.tensor([[1.0, 2.0, 0.0]])])
    assert torch.equal(found["a"], found["b"])
    p = torch.tensor([1.0, 2.0, 0.0]).softmax(0)
    torch.testing.assert_close(found["a"], (p.sqrt() - p * p.sqrt().sum()).square())


def test_tied_weights_share_one_fisher():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    x = torch.randn(3, 4)
    found = diagonal_fisher(model, identity, [x])
    weight = model[0].weight.detach().clone().requires_grad_()
    log_p = (x @ weight.T @ weight.T).log_softmax(-1)
    (log_p.exp().sqrt().detach() * log_p).sum().backward()
    torch.testing.assert_close(found["0.weight"], weight.grad**2 / 3)
    assert torch.equal(found["0.weight"], found["1.weight"])


@pytest.mark.parametrize("statistic", ["fisher", "gram"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(statistic, fails):
    model, x = perceptron().train(), inputs()
    model.second.eval()
    model.first.weight.requires_grad_(False)
    model.first.bias.grad = torch.ones(HIDDEN, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if fails:
        x = torch.full_like(x, torch.nan)
    state = torch.get_rng_state()
    with torch.no_grad(), pytest.raises(MergeError) if fails else torch.no_grad():
        found = diagonal_fisher(model, identity, [x]) if statistic == "fisher" else gram_matrices(model, [x])
        assert found["first.weight"].abs().sum() > 0  # frozen parameters have a Fisher value too
        assert not any(tensor.requires_grad for tensor in found.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert [model.training, model.first.training, model.second.training] == [True, True, False]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True]
    assert [p.grad is not None for p in model.parameters()] == [False, False, True, False, False]
    assert torch.equal(model.first.bias.grad, torch.ones(HIDDEN, dtype=torch.float64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.first._forward_hooks


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("statistic", ["fisher", "gram"])
def test_examples_stops_after_exactly_that_many(statistic):
    model, x = perceptron(), inputs(9)

    def compute(batches, examples=None):
        return diagonal_fisher(model, identity, batches, examples=examples) if statistic == "fisher" else gram_matrices(
            model, batches, examples=examples
        )

    fetched = []

    def stream():
        for number in range(3):
            fetched.append(number)
            yield x[3 * number : 3 * number + 3]

    for examples, batches, fetches in ((4, [x[:3], x[3:4]], 2), (3, [x[:3]], 1), (9, list(x.split(3)), 3)):
        fetched.clear()
        found, expected = compute(stream(), examples), compute(batches)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert len(fetched) == fetches
    forms = ([x], [(x, 1)], [[x]], [{"x": x, "y": x}], [{"pixel_values": x, "labels": x}], [{"any": x, "n": 3}], [x[:0], x])
    assert all(torch.equal(compute(form)["first.weight"], compute([x])["first.weight"]) for form in forms)
    with torch.inference_mode():
        frozen = x.clone()
    assert torch.equal(compute([frozen])["first.weight"], compute([x])["first.weight"])


BAD_BATCHES = [
    ([], None, "holds no examples"), ([torch.zeros(0, WIDTH)], None, "holds no examples"), (inputs(), None, "got Tensor"),
    ({"x": inputs()}, None, "got dict"), (3, None, "got int"), ([[]], None, "got list"), ([3], None, "got int"),
    ([torch.tensor(1.0)], None, "without dimensions"), ([{"a": inputs(), "b": inputs()}], None, "entries a, b"),
    ([inputs()], 8, "examples is 8, but the batches hold only 7"), ([inputs()], 0, "at least 1 or None, got 0"),
    ([inputs()], True, "got True"), ([inputs()], 2.0, "got 2.0"), ([inputs() * torch.nan], None, "not finite"),
]


@pytest.mark.parametrize(("batches", "examples", "message"), BAD_BATCHES)
@pytest.mark.parametrize("statistic", ["fisher", "gram"])
def test_bad_batches_are_refused_in_one_line(statistic, batches, examples, message):
    with pytest.raises(MergeError) as refusal:
        if statistic == "fisher":
            diagonal_fisher(perceptron(), identity, batches, examples=examples)
        else:
            gram_matrices(perceptron(), batches, examples=examples)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (lambda f: f[:, :1], "at least 2 classes, the logits have 1"), (lambda f: f.sum(1), r"got \(7,\)"),
        (lambda f: f[:3], r"give \[7, classes\] for a batch of 7, got \(3, 4\)"), (lambda f: "no", "got str"),
        (lambda f: f / 0, "28 of 28 logits are not finite"), (lambda f: f.detach(), "do not depend on the model"),
    ],
)
def test_bad_logits_are_refused_in_one_line(logits, message):
    with pytest.raises(MergeError, match=message) as refusal:
        diagonal_fisher(perceptron(), logits, [inputs()])
    assert "\n" not in str(refusal.value)


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(MergeError, match="unknown variant 'tru': did you mean 'true'"):
        diagonal_fisher(perceptron(), identity, [inputs()], variant="tru")
