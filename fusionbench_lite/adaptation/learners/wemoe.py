"""WEMoE at work: routers in front of the perceptrons of a transformer, and nothing else, are learned."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.draws import normal
from fusionbench_lite.adaptation.engine.core import MergedEncoder, Segment
from fusionbench_lite.adaptation.engine.foreign import features_of, running
from fusionbench_lite.adaptation.engine.naming import rename_state
from fusionbench_lite.adaptation.engine.objectives import objective
from fusionbench_lite.adaptation.engine.procedure import Batch, Context, Examples, Procedure, Update
from fusionbench_lite.adaptation.learners.frozen import Frozen
from fusionbench_lite.adaptation.learners.mixture import Gates, MixedLinear, frozen_copy, is_linear
from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.blocks import perceptrons
from fusionbench_lite.models.inputs import Inputs, size_of
from fusionbench_lite.weights.experts import Experts

INITIAL = 0.01
"""Standard deviation of a router's weights at the start."""


class Router(nn.Module):
    """g = mean over tokens of W2 relu(W1 h + b1) + b2 for states h [B, N, d] or [B, d], without a softmax: [B, T]."""

    def __init__(self, hidden: Tensor, output: Tensor, bias: float) -> None:
        super().__init__()
        self.hidden = nn.Parameter(hidden)
        self.hidden_bias = nn.Parameter(hidden.new_zeros(len(hidden)))
        self.output = nn.Parameter(output)
        self.output_bias = nn.Parameter(output.new_full((len(output),), bias))

    def forward(self, states: Tensor) -> Tensor:
        """Return the gates; the mean is taken before W2, which is linear."""
        tokens = states.reshape(len(states), -1, states.shape[-1]).to(self.hidden.dtype)  # [B, N, d]
        active = torch.relu(nn.functional.linear(tokens, self.hidden, self.hidden_bias)).mean(1)
        return nn.functional.linear(active, self.output, self.output_bias)


class RoutedEncoder(MergedEncoder):
    """A copy of the model whose perceptrons are mixed by their routers; everything but the routers is frozen."""

    def __init__(self, context: Context, frozen: Frozen, routers: Mapping[str, Router], *, whole_batch: bool) -> None:
        self.model, _ = frozen_copy(context.model, frozen.base)
        self.frozen = frozen
        self.chunk = None if whole_batch else context.chunk
        self.whole_batch = whole_batch
        self.leaves = {f"{name}/{part}": leaf for name, router in routers.items() for part, leaf in router.named_parameters()}
        for name, router in routers.items():
            gates = Gates()
            _mix(self.model, name, frozen, gates)
            hook = functools.partial(_route, name, router, gates, whole_batch)
            self.model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)

    def _chunks(self, inputs: Inputs, segments: list[Segment], size: int, *rest: Any) -> dict[str, Tensor]:
        if self.whole_batch and size < size_of(inputs):
            raise MergeError("out of memory, and a batch that is routed as a whole cannot be split: lower batch_size")
        return super()._chunks(inputs, segments, size, *rest)

    def encode(self, inputs: Inputs) -> Tensor:
        """Return features of the routed model."""
        with running(self.model, inputs, self.frozen.base):
            output = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs)
        return features_of(output, self.model, inputs)


def linear_layers(model: nn.Module, name: str, weights: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Return the linear layers of the perceptron `name` that have weights in `weights`, by full name.

    Raises MergeError where there is none.
    """
    layers = {
        f"{name}.{path}".rstrip("."): module for path, module in model.get_submodule(name).named_modules()
        if is_linear(module) and f"{name}.{path}".rstrip(".") + ".weight" in weights
    }
    if not layers:
        raise MergeError(f"{name!r} of {type(model).__name__} has no linear layer among the weights: it cannot be routed")
    return layers


def _mix(model: nn.Module, name: str, frozen: Frozen, gates: Gates) -> None:
    """Replace the linear layers of a perceptron by mixed ones."""
    experts = frozen.experts
    for path, module in linear_layers(model, name, experts.specs).items():
        weight, vectors = _mixture_of(f"{path}.weight", frozen)
        bias = _mixture_of(f"{path}.bias", frozen) if f"{path}.bias" in experts.specs else (None, None)
        mixed = MixedLinear(gates, weight, vectors, *bias, transposed=not isinstance(module, nn.Linear))
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, mixed)


def _mixture_of(name: str, frozen: Frozen) -> tuple[Tensor, Tensor]:
    """Return θ0 and the task vectors of a tensor, where the model is."""
    return frozen.experts.base(name).to(frozen.device), frozen.experts.task_vectors(name).to(frozen.device)


def _route(
    name: str, router: Router, gates: Gates, whole_batch: bool, module: nn.Module, arguments: Any, named: Mapping[str, Any]
) -> None:
    states = arguments[0] if arguments else next(iter(named.values()))
    if states.shape[-1] != router.hidden.shape[1]:
        raise MergeError(
            f"{name!r} reads states of width {states.shape[-1]}, its first linear layer has {router.hidden.shape[1]} inputs: "
            "its router cannot be built"
        )
    values = router(states)
    gates.values = values.mean(0, keepdim=True) if whole_batch else values


class Routing(Procedure):
    """Adam on the routers, by the entropy of the routed model's predictions.

    All perceptrons mix θ0 + Σ_t g_t τ_t for every example, or with `whole_batch` for the batch of a task, which is never
    split then. Gates start near `scaling`; `falling` lets the learning rate fall to 0 along a cosine.
    """

    def __init__(
        self, experts: Experts, base: Mapping[str, Tensor], context: Context, *, scaling: float, lr: float, falling: bool,
        whole_batch: bool, seed: int,
    ) -> None:
        self.experts, self.steps, self.scaling, self.seed = experts, context.steps, scaling, seed
        self.lr, self.falling, self.whole_batch = lr, falling, whole_batch
        self.frozen = Frozen(context, experts, base)
        self.routers = {name: self._router(context.model, name) for name in perceptrons(context.model)}
        self.learnables = nn.ModuleDict({name.replace(".", "/"): router for name, router in self.routers.items()})
        rename_state(self.learnables, {
            f"{name.replace('.', '/')}.{part}": f"{name}/{part}"
            for name, router in self.routers.items() for part, _ in router.named_parameters()
        })
        self.encoder = RoutedEncoder(context, self.frozen, self.routers, whole_batch=self.whole_batch)
        self.objective = objective("entropy", context.heads)

    def _router(self, model: nn.Module, name: str) -> Router:
        """Return the router of a perceptron, as wide as what its first linear layer reads."""
        path, first = next(iter(linear_layers(model, name, self.experts.specs).items()))
        width = self.experts.shape(f"{path}.weight")[1 if isinstance(first, nn.Linear) else 0]
        hidden, output = (
            (INITIAL * normal((rows, width), self.seed, "wemoe", name, part).double()).to(self.frozen.device, self.frozen.dtype)
            for part, rows in (("hidden", width), ("output", len(self.experts)))
        )
        return Router(hidden, output, self.scaling)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Adam on the routers; its learning rate is set by the number of the step."""
        self._optimizer = torch.optim.Adam(self.learnables.parameters(), lr=self.lr)
        return (self._optimizer,)

    def step(self, step: int, batches: Sequence[Batch], update: Update) -> Mapping[str, Tensor]:
        """Do one step at the learning rate of the schedule."""
        (batch,) = batches
        if self.falling:
            for group in self._optimizer.param_groups:
                group["lr"] = self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2
        self._optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        for part in self._together(batch):
            losses |= self.encoder.accumulate(part, self.objective)
        losses = losses or {self.tasks[0]: self.frozen.zero()}
        for parameter in self.learnables.parameters():  # processes add up gradients, whether they have tasks or not
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        update(losses, self._optimizer)
        return losses

    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return each task's mean entropy."""
        return {
            task: loss for part in self._together(batch) for task, loss in self.encoder.losses(part, self.objective).items()
        }

    def _together(self, batch: Batch) -> list[Batch]:
        """Return what may run as one forward pass: all tasks, or each on its own where a batch is routed as a whole."""
        if not self.whole_batch:
            return [batch]
        return [{task: examples} for task, examples in batch.items()]

    def encode(self, task: str, examples: Examples) -> Tensor:
        """Return features of the routed model, the same for every task."""
        assert examples.inputs is not None
        if self.whole_batch:
            return self.encoder.encode(examples.inputs)
        return self.frozen.run({}, examples.inputs, lambda _, part: self.encoder.encode(part))

    def merged(self, task: str | None = None) -> dict[str, Tensor]:
        """Return the weights of task arithmetic, which hold for gates that all equal `scaling`."""
        return self.frozen.state_dict()
