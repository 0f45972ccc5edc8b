"""`fusionbench_lite.adapt`: one call for every adaptive method."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fusionbench_lite import registry
from fusionbench_lite.adaptation.fitting import fitted
from fusionbench_lite.adaptation.given import check_steps, check_tasks, heads_evaluating, inputs_of
from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.fields import describe
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights import buffers
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.readers import open_experts
from fusionbench_lite.weights.specs import StateDict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusionbench_lite.adaptation.engine.procedure import Batch, Examples, Procedure
    from fusionbench_lite.models.inputs import Inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """An adapted model and what was learned.

    `coefficients`: raw λ after the last update, {tensor name: [T]} in task order. `masks`: hard masks of the singular
    components, {matrix name: bool [T, r]}; both are empty for methods without. `learned`: every learnable by name.
    `losses` [steps]: Σ_t of the tasks' losses at each step, at the values before its update. `hyperparameters`: the
    values used.
    """

    method: str
    hyperparameters: Mapping[str, Any]
    tasks: tuple[str, ...]
    coefficients: dict[str, Tensor]
    masks: dict[str, Tensor]
    learned: dict[str, Tensor]
    losses: Tensor
    _procedure: Procedure = dataclasses.field(repr=False)
    _steps: int = dataclasses.field(repr=False)

    def state_dict(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the merged weights after the last update: keys, order and dtypes of `pretrained`.

        Adapters and routers are not in it: `encode` runs the model with them. `task` is needed where the method keeps
        one model per task.
        """
        if task is not None:
            self._check(task)
        return self._procedure.merged(task)

    def encode(self, inputs: Inputs, task: str) -> Tensor:
        """Return the features that the adapted model gives for inputs of a task, with its adapters and routers."""
        from fusionbench_lite.adaptation.engine.procedure import Examples

        self._check(task)
        with torch.no_grad():
            self._procedure.refresh(self._steps)
            inputs = inputs_of(task, 0, inputs)
            return self._procedure.encode(task, Examples(inputs, self._procedure.precomputed(task, inputs)))

    def _check(self, task: str) -> None:
        if task not in self.tasks:
            raise MergeError(f"unknown task {task!r}: {did_you_mean(task, self.tasks)}")


def adapt(
    method: str, model: nn.Module, pretrained: StateDict, experts: Mapping[str, StateDict | str | os.PathLike[str]],
    heads: Mapping[str, Callable[[Tensor], Tensor]], batches: Mapping[str, Iterable[Any]], steps: int,
    **hyperparameters: Any,
) -> Adapted:
    """Merge experts and adapt what the method learns on unlabelled batches.

    `model(x)` returns features and is run with the merged tensors in place of its own, in evaluation mode, as heads are;
    `heads[task](features)` returns logits, -inf for classes that it masks; `batches[task]` yields the inputs of one step, a
    tensor, a list of one, or a mapping of the tensors that the model takes by name. Methods that read several batches in a
    step take as many; supervised ones take pairs of inputs and labels. Modules that are compiled or wrapped for data
    parallelism or checkpoints run without that. A MergeWarning names a tensor of the model that `pretrained` lacks, and a
    weight that experts changed and the model lacks. Experts, which may be paths, and hyperparameters are as in
    `fusionbench_lite.merge`; methods with adapters on a merged model take its weights as `merged` where it is not one
    of their `base` methods. Inputs, the model's parameters and the heads stay as they are.

    Raises MergeError naming the task, the values and the fix: everything that `merge` refuses; a missing head or
    missing batches; fewer batches than steps; a model that has weights under other names, returns no features or passes no
    gradient on to them; heads that return no logits; a loss or a gradient that is not finite.
    """
    entry = registry.get(method, learning=True)
    if not entry.adaptive:
        raise MergeError(f"method {method!r} needs no data: call fusionbench_lite.merge")
    extra = {name: hyperparameters.pop(name) for name in entry.inputs if name in hyperparameters}
    configured = entry.configure(**hyperparameters)
    view = Experts(pretrained, open_experts(experts, pretrained))
    if view.changed and entry.family != registry.REFERENCE:  # training on labels reads no expert
        buffers.warn_kept(view.changed)
    view.check_unread()
    steps = check_steps(steps)
    check_tasks(view.tasks, heads, batches)
    model = fitted(model, view)
    from fusionbench_lite.adaptation.engine.procedure import Context
    from fusionbench_lite.adaptation.engine.trial import check_runs

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    # What is learned has to take gradients, wherever this is called.
    with torch.inference_mode(False), torch.enable_grad(), heads_evaluating(heads):
        example, batches = _peeked(view.tasks[0], batches, device)
        if example is not None:
            check_runs(model, pretrained, example, gradient=False)
        procedure = entry.function(view, configured, **extra)(Context(model, heads, steps, example=example))
        if example is not None and steps and procedure.differentiates:
            check_runs(model, pretrained, example, gradient=True)
        losses = _fit(procedure, _Queue(procedure, batches, steps, device), steps, device)
    return Adapted(
        method=method, hyperparameters=describe(configured), tasks=tuple(view.tasks), coefficients=procedure.coefficients(),
        masks=procedure.masks(), learned=procedure.learned(), losses=losses, _procedure=procedure, _steps=steps,
    )


def _fit(
    procedure: Procedure, batches_of: Callable[[int], list[Batch]], steps: int, device: torch.device
) -> Tensor:
    if steps == 0:
        return torch.zeros(0, dtype=torch.float64)
    from fusionbench_lite.adaptation.engine.fit import FitSettings, fit

    module = fit(procedure, batches_of, steps, FitSettings(accelerator=device.type))
    return torch.tensor(module.history.losses, dtype=torch.float64)


def _peeked(
    task: str, batches: Mapping[str, Iterable[Any]], device: torch.device
) -> tuple[Inputs | None, Mapping[str, Iterable[Any]]]:
    """Return the inputs of a task's first batch, None where there is none, and the batches with that one put back."""
    iterator = iter(batches[task])
    given = next(iterator, None)
    if given is None:
        return None, {**batches, task: iterator}
    whole = {**batches, task: itertools.chain([given], iterator)}
    if isinstance(given, (tuple, list)) and len(given) == 2:
        given = given[0]  # of (inputs, labels)
    from fusionbench_lite.adaptation.engine.procedure import Examples

    return Examples(inputs_of(task, 0, given)).to(device).inputs, whole


class _Queue:
    """Hands out the batches of each step, taken from the iterables in turn."""

    def __init__(
        self, procedure: Procedure, batches: Mapping[str, Iterable[Any]], steps: int, device: torch.device
    ) -> None:
        self.procedure = procedure
        self.device = device
        self.steps = steps
        self.iterators = {task: iter(batches[task]) for task in procedure.tasks}
        self.taken = 0

    def __call__(self, step: int) -> list[Batch]:
        """Return the examples of every task for each draw of the step."""
        return [self._next(step) for _ in self.procedure.draws(step)]

    def _next(self, step: int) -> Batch:
        batch = {}
        for task, iterator in self.iterators.items():
            given = next(iterator, None)
            if given is None:
                needed = sum(len(self.procedure.draws(number)) for number in range(self.steps))
                raise MergeError(
                    f"task {task!r} has {self.taken} batches, {self.steps} steps need {needed}: add batches or lower steps"
                )
            batch[task] = self._examples(task, step, given)
        self.taken += 1
        return batch

    def _examples(self, task: str, step: int, given: Any) -> Examples:
        from fusionbench_lite.adaptation.engine.procedure import Examples
        from fusionbench_lite.models.inputs import size_of

        labels = None
        if self.procedure.reads_labels:
            if not isinstance(given, (tuple, list)) or len(given) != 2:
                raise MergeError(f"task {task!r}: the method is supervised: let its batches yield (inputs, labels)")
            given, labels = given
        inputs = inputs_of(task, step, given)
        if labels is not None:
            _check_labels(task, step, labels, size_of(inputs))
        examples = Examples(inputs, None, labels).to(self.device)
        assert examples.inputs is not None
        with torch.no_grad():
            return dataclasses.replace(examples, precomputed=self.procedure.precomputed(task, examples.inputs))


def _check_labels(task: str, step: int, labels: Any, size: int) -> None:
    """Whether they fit the head's classes is seen where the loss is computed."""
    what = f"{tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, torch.Tensor) else type(labels).__name__
    whole = isinstance(labels, torch.Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
    if not whole or labels.shape != (size,):
        raise MergeError(f"task {task!r}: the labels of step {step + 1} must be integers [{size}], got {what}")
