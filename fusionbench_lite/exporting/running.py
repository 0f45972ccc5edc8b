"""Models with adapters, routers or masks from their tensors: the classes that ran them when they were judged run them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.procedure import Context, Examples, Procedure
from fusionbench_lite.adaptation.learners.lazy_weights import LowRank as RoutedFactors
from fusionbench_lite.adaptation.learners.lazy_weights import Whole
from fusionbench_lite.adaptation.learners.surgery import FeatureSurgery
from fusionbench_lite.adaptation.learners.twin import Twin
from fusionbench_lite.adaptation.learners.wemoe import Routing
from fusionbench_lite.errors import InputError
from fusionbench_lite.exporting.forms import ADAPTERS, ROUTERS
from fusionbench_lite.methods.api import unfolding
from fusionbench_lite.models.inputs import Inputs
from fusionbench_lite.weights.compact import LowRank, Masked, Own, PerTask
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.limits import Limits

Parts = Mapping[str, Tensor]


class Running:
    """A procedure that takes no steps: built from an export's tensors at its first inputs, which widths are measured on."""

    def __init__(self, said: Mapping[str, Any], encoder: nn.Module, weights: Mapping[str, Tensor], parts: Parts) -> None:
        self._said, self._encoder, self._weights, self._parts = said, encoder, weights, parts
        self._procedure: Procedure | None = None

    def __call__(self, inputs: Inputs, task: str) -> Tensor:
        """Return the features [B, d]."""
        if self._procedure is None:
            self._procedure = self._built(inputs)
        known = None
        if isinstance(self._procedure, FeatureSurgery):  # which reads the merged model's features, and while it learns the experts'
            features = self._procedure.frozen.run(self._procedure.frozen.base, inputs)
            known = torch.stack([features, features], dim=1)  # [B, 2, d]
            known = nn.functional.normalize(known, dim=-1) if self._procedure.normalise else known
        return self._procedure.encode(task, Examples(inputs, known))

    def _built(self, inputs: Inputs) -> Procedure:
        context = Context(self._encoder, {}, 0, example=Examples(inputs).part(0, 1).inputs)
        procedure = self._of_form(context)
        try:
            procedure.restore(_under("state/", self._parts), _under("extra/", self._parts))
        except (KeyError, RuntimeError) as error:
            raise InputError(f"parts.safetensors is not of {self._said['method']} ({str(error).splitlines()[0]})") from None
        procedure.refresh(0)
        return procedure

    def _of_form(self, context: Context) -> Procedure:
        method, weights, parts, tasks = self._said["method"], self._weights, self._parts, self._said["experts"]
        entry = registry.get(method, learning=True)
        h = entry.configure(**self._said["hyperparameters"])
        if self._said["form"] == ADAPTERS:
            adapted: Procedure = entry.function(_same(weights, tasks), h, merged=weights)(context)
            return adapted
        if self._said["form"] == ROUTERS:
            base = {**weights, **_under("base/", parts)}
            experts = Experts(base, {task: {**base, **_under(f"own/{number}/", parts)} for number, task in enumerate(tasks)})
            return Routing(
                experts, weights, context, scaling=h.scaling, lr=h.lr, falling=h.schedule == "cosine",
                whole_batch=h.routing == "batch", seed=h.seed,
            )
        whole = {name: Whole(tensor) for name, tensor in _under("whole/", parts).items()}
        factors = {
            name: RoutedFactors(left, parts[f"right/{name}"], len(tasks)) for name, left in _under("left/", parts).items()
        }
        return Twin(
            _same(weights, tasks), weights, context, rank_ratio=h.rank_ratio, of_tasks=h.router == "tasks", lr=h.lr,
            dropout=h.dropout, seed=h.seed, vectors={**whole, **factors},
        )


def unfolded(said: Mapping[str, Any], weights: Mapping[str, Tensor], parts: Parts) -> Callable[[str], Mapping[str, Tensor]]:
    """Return the weights of a task's model, as a function of the task, from their compact form. Raises KeyError for a lost part."""
    tasks = said["experts"]
    view = _same(weights, tasks)
    stored: dict[str, PerTask] = {}
    for name, vector in _under("vector/", parts).items():
        stored[name] = Masked(experts=view, name=name, vector=vector, bits=parts[f"bits/{name}"].cpu(), scales=parts.get("scales"))
    count = range(len(tasks))
    for name in _under("left/0/", parts):
        sides = ([parts[f"{side}/{number}/{name}"] for number in count] for side in ("left", "right"))
        left, right = (tuple(side) for side in sides)
        stored[name] = LowRank(view, name, left, right)
    of_tasks = {task: _under(f"own/{number}/", parts) for number, task in enumerate(tasks)}
    if of_tasks[tasks[0]]:
        names = list(of_tasks[tasks[0]])
        whole = Experts({name: weights[name] for name in names}, {task: dict(own) for task, own in of_tasks.items()})
        stored |= {name: Own(whole, name) for name in names}
    return unfolding(said["method"], view, stored, said["hyperparameters"], Limits(said["method"])).state_dict


def _same(weights: Mapping[str, Tensor], tasks: list[str]) -> Experts:
    """Return experts that are all the merged model: what is built on them reads their names, shapes and number alone."""
    return Experts(weights, dict.fromkeys(tasks, weights))


def _under(prefix: str, parts: Parts) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in parts.items() if name.startswith(prefix)}
