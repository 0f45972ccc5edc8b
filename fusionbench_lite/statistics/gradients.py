"""Mean absolute gradients of a classifier's loss, the statistic of TATR (Sun et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.inputs import Inputs, each, size_of
from fusionbench_lite.models.modes import evaluating
from fusionbench_lite.statistics.differentiation import at_least_float32, by_name, differentiable, log_probabilities, parameters_of
from fusionbench_lite.statistics.inputs import inputs_of

WHAT = "the gradient"


def absolute_gradients(
    model: nn.Module, logits: Callable[[Tensor], Tensor], batches: Iterable[tuple[Any, Tensor]], *, named: bool = False
) -> dict[str, Tensor]:
    """Return (1/N) Σ_B |B| |∇ L_B| of every floating-point tensor of `model.state_dict()`, float32, L_B the mean cross entropy.

    `logits(model(x))` are the logits [B, C] of the task, C ≥ 2; `batches` yields pairs of training inputs x [B, …] and labels
    [B], N examples in all; where `named`, inputs are mappings, the model's named inputs. Batches of one example give the mean of
    the examples' absolute gradients, as FusionBench computes it, one batch of all the absolute gradient of the mean loss.

    The model is differentiated as in `diagonal_fisher`, and left as it was. Tensors that no gradient reaches have 0.

    Raises MergeError: no examples, labels that do not fit, logits that are not [B, C ≥ 2] or not finite.
    """
    parameters = parameters_of(model)
    sums = [torch.zeros_like(p, dtype=at_least_float32(p), requires_grad=False) for p in parameters]
    seen = 0
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), differentiable(parameters):
        for batch in batches:
            inputs, labels = _pair(batch, named)
            usable = each(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, inputs)
            log_p = log_probabilities(model, logits, usable, WHAT)
            loss = nn.functional.nll_loss(log_p, _checked(labels, log_p))
            for total, gradient in zip(sums, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                if gradient is not None:
                    total.add_(gradient.to(total.dtype).abs_(), alpha=len(labels))
            seen += len(labels)
    if not seen:
        raise MergeError("batches holds no examples: the gradient needs at least one")
    return by_name(model, parameters, [total / seen for total in sums], WHAT)


def _pair(batch: Any, named: bool) -> tuple[Inputs, Tensor]:
    """Return inputs and labels of a batch, as many of one as of the other."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise MergeError(f"a batch must be a pair of inputs and labels, got {type(batch).__name__}: yield (inputs, labels)")
    (inputs,) = inputs_of([batch[0]], None, named=named)
    labels = batch[1]
    if labels.dim() != 1 or len(labels) != size_of(inputs):
        raise MergeError(f"a batch of {size_of(inputs)} examples has labels of shape {tuple(labels.shape)}: give one for each")
    return inputs, labels


def _checked(labels: Tensor, log_p: Tensor) -> Tensor:
    """Return labels as indices of classes; raises MergeError for one that is none."""
    found, classes = labels.to(log_p.device).long(), log_p.shape[1]
    if int(found.min()) < 0 or int(found.max()) >= classes:
        raise MergeError(
            f"labels from {int(found.min())} to {int(found.max())} do not fit logits of {classes} classes, 0 to {classes - 1}"
        )
    return found
