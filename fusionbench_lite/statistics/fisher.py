"""Diagonal Fisher information of a classifier (Matena & Raffel 2022), the statistic of Fisher merging."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.models.inputs import Inputs, each, part_of, size_of
from fusionbench_lite.models.modes import evaluating
from fusionbench_lite.statistics.differentiation import at_least_float32, by_name, differentiable, log_probabilities, parameters_of
from fusionbench_lite.statistics.inputs import inputs_of

VARIANTS = ("batch", "true")
WHAT = "the Fisher information"
Terms = Iterator[tuple[float, Sequence[Tensor | None]]]
"""Pairs of a weight w and gradients g, one per parameter: F sums w g²."""


def diagonal_fisher(
    model: nn.Module, logits: Callable[[Tensor], Tensor], batches: Iterable[Any], *, examples: int | None = None,
    variant: str = "batch", named: bool = False,
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information F of every floating-point tensor of `model.state_dict()`, float32.

    `logits(model(x))` are the logits [B, C] of the task, C ≥ 2; `batches` yields unlabelled training inputs x [B, …],
    or tuples and mappings that hold them; where `named`, mappings are the model's named inputs themselves. N = `examples` of
    them are used, all by default.

    `batch`: F = (1/N) Σ_B g_B² with g_B = ∇ Σ_{b∈B} Σ_c √p_bc · log p_bc and the p under the root held constant, as in
    the code of MergeLM and FusionBench. The square of the sum has terms across examples and classes, so F depends on
    how the examples are batched. `true`: F = (1/N) Σ_x Σ_c p_c (∇ log p_c)², the definition of the paper with the exact
    expectation over classes; one backward pass per example and class.

    The model is differentiated in evaluation mode with respect to every floating-point parameter, also the frozen
    ones; its modes, `requires_grad` flags and `.grad` are afterwards what they were. Tied tensors share one F. Tensors
    that no gradient reaches, such as buffers, have F = 0.

    Raises MergeError: no examples or too few, logits that are not [B, C ≥ 2] or not finite, logits that do not depend
    on the model.
    """
    if variant not in VARIANTS:
        raise MergeError(f"unknown variant {variant!r}: {did_you_mean(str(variant), VARIANTS)}")
    parameters = parameters_of(model)
    sums = [torch.zeros_like(p, dtype=at_least_float32(p), requires_grad=False) for p in parameters]
    terms_of = _batch_terms if variant == "batch" else _true_terms
    seen = 0
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), differentiable(parameters):
        for inputs in inputs_of(batches, examples, named=named):
            seen += size_of(inputs)
            usable = each(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, inputs)
            for weight, gradients in terms_of(model, logits, usable, parameters):
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        gradient = gradient.to(total.dtype)
                        total.addcmul_(gradient, gradient, value=weight)
    return by_name(model, parameters, [total / seen for total in sums], WHAT)


def _batch_terms(
    model: nn.Module, logits: Callable[[Tensor], Tensor], inputs: Inputs, parameters: Sequence[Tensor]
) -> Terms:
    log_p = log_probabilities(model, logits, inputs, WHAT)
    root = log_p.detach().exp().sqrt()
    yield 1.0, torch.autograd.grad((root * log_p).sum(), parameters, allow_unused=True)


def _true_terms(
    model: nn.Module, logits: Callable[[Tensor], Tensor], inputs: Inputs, parameters: Sequence[Tensor]
) -> Terms:
    for index in range(size_of(inputs)):
        log_p = log_probabilities(model, logits, part_of(inputs, index, index + 1), WHAT)[0]
        last = len(log_p) - 1
        for number, p in enumerate(log_p.detach().exp()):
            yield float(p), torch.autograd.grad(log_p[number], parameters, retain_graph=number < last, allow_unused=True)
