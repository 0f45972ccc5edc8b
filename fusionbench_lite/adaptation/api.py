"""`fusionbench_lite.adapt`: one call for every adaptive method."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fusionbench_lite import registry
from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.layout import StateDict
from fusionbench_lite.weights.readers import open_experts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusionbench_lite.adaptation.engine.module import Adaptation
    from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation


@dataclasses.dataclass(frozen=True)
class Adapted:
    """An adapted model and what was learned.

    `coefficients`: raw λ after the last update, {tensor name: [T]} in task order. `masks`: hard masks of the singular
    components, {matrix name: bool [T, r]}, empty for methods without. `losses` [steps]: Σ_t mean entropy of each step,
    at the weights before its update. `hyperparameters`: the values used.
    """

    method: str
    hyperparameters: Mapping[str, Any]
    tasks: tuple[str, ...]
    coefficients: dict[str, Tensor]
    masks: dict[str, Tensor]
    losses: Tensor
    _merged: Callable[[], dict[str, Tensor]] = dataclasses.field(repr=False)

    def state_dict(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the merged weights after the last update: keys, order and dtypes of `pretrained`."""
        if task is not None and task not in self.tasks:
            raise MergeError(f"unknown task {task!r}: {did_you_mean(task, self.tasks)}")
        return self._merged()


def adapt(
    method: str, model: nn.Module, pretrained: StateDict, experts: Mapping[str, StateDict | str | os.PathLike[str]],
    heads: Mapping[str, Callable[[Tensor], Tensor]], batches: Mapping[str, Iterable[Tensor]], steps: int,
    **hyperparameters: Any,
) -> Adapted:
    """Merge experts and adapt what the method learns on unlabelled batches.

    `model(x)` returns features and is run with the merged tensors in place of its own, in evaluation mode;
    `heads[task](features)` returns logits; `batches[task]` yields one input tensor per step. Experts, which may be
    paths, and hyperparameters are as in `fusionbench_lite.merge`. Inputs, the model's parameters and the heads stay as they are.

    Raises MergeError naming the task, the values and the fix: everything that `merge` refuses; a missing head or
    missing batches; fewer batches than steps; a model that shares no tensor with the weights; a loss that is not
    finite.
    """
    entry = registry.get(method)
    if not entry.adaptive:
        raise MergeError(f"method {method!r} needs no data: call fusionbench_lite.merge")
    configured = entry.configure(**hyperparameters)
    view = Experts(pretrained, open_experts(experts, pretrained))
    view.check_unread()
    _check_steps(steps)
    _check_tasks(view.tasks, heads=heads, batches=batches)
    check_model(model, pretrained)
    parametrisation = entry.function(view, configured)
    queue = _first_batches(batches, view.tasks, steps)
    module = _fit(parametrisation, model, heads, queue, steps)
    losses = torch.tensor(module.history.losses if module else [], dtype=torch.float64)
    return Adapted(
        method, registry.describe(configured), tuple(view.tasks), parametrisation.named_coefficients(),
        parametrisation.named_masks(), losses, parametrisation.merged,
    )


def _fit(
    parametrisation: Parametrisation, model: nn.Module, heads: Mapping[str, Callable[[Tensor], Tensor]],
    queue: Callable[[int], Mapping[str, Tensor]], steps: int,
) -> Adaptation | None:
    if steps == 0:
        return None
    from fusionbench_lite.adaptation.engine.fit import Settings, fit

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return fit(parametrisation, model, heads, queue, steps, Settings(accelerator=device.type))


def _check_steps(steps: Any) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise MergeError(f"steps must be an integer of at least 0, got {steps!r}")


def _check_tasks(tasks: list[str], **given: Any) -> None:
    for argument, mapping in given.items():
        if not isinstance(mapping, Mapping):
            raise MergeError(f"{argument} must map task names, got {type(mapping).__name__}")
        for task in tasks:
            if task not in mapping:
                raise MergeError(f"{argument} lacks task {task!r}: give one entry for each of {', '.join(tasks)}")


def check_model(model: nn.Module, pretrained: StateDict) -> None:
    """Raise MergeError where the model cannot run with these weights: no key in common, or a shape that differs."""
    known = model.state_dict()
    if not any(name in known for name in pretrained):
        raise MergeError(
            f"the model has no tensor of the pretrained weights: it has {next(iter(known), 'none')!r}, "
            f"they have {next(iter(pretrained), 'none')!r}; build the encoder that the weights belong to"
        )
    for name, tensor in pretrained.items():
        if name in known and known[name].shape != tensor.shape:
            raise MergeError(
                f"the model's {name!r} has shape {tuple(known[name].shape)}, the weights {tuple(tensor.shape)}; "
                "build the encoder that the weights belong to"
            )


def _first_batches(
    batches: Mapping[str, Iterable[Tensor]], tasks: list[str], steps: int
) -> Callable[[int], Mapping[str, Tensor]]:
    """Return the function that hands out the batches of each step, taken from the iterables in turn."""
    iterators = {task: enumerate(itertools.islice(batches[task], steps)) for task in tasks}

    def batch_of(step: int) -> Mapping[str, Tensor]:
        batch = {}
        for task, iterator in iterators.items():
            number, inputs = next(iterator, (None, None))
            if number is None:
                raise MergeError(
                    f"task {task!r} has {step} batches, {steps} steps need {steps}: add batches or lower steps"
                )
            batch[task] = _checked_inputs(task, step, inputs)
        return batch

    return batch_of


def _checked_inputs(task: str, step: int, inputs: Any) -> Tensor:
    if not isinstance(inputs, torch.Tensor) or inputs.dim() == 0 or len(inputs) == 0:
        what = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        raise MergeError(f"task {task!r}: the batch of step {step + 1} must be a tensor of examples, got {what}")
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise MergeError(f"task {task!r}: the batch of step {step + 1} has non-finite values; check the inputs")
    return inputs
