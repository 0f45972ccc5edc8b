"""What of a model is written: whole weights, or shared weights with the small tensors of tasks, routers and adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fusionbench_lite import registry
from fusionbench_lite.adaptation.engine.procedure import Procedure
from fusionbench_lite.adaptation.learners.adapter_training import AdapterTraining
from fusionbench_lite.adaptation.learners.block_surgery import BlockSurgery
from fusionbench_lite.adaptation.learners.lazy_weights import LowRank as RoutedFactors
from fusionbench_lite.adaptation.learners.surgery import FeatureSurgery
from fusionbench_lite.adaptation.learners.twin import Twin
from fusionbench_lite.adaptation.learners.wemoe import Routing, linear_layers
from fusionbench_lite.errors import InputError
from fusionbench_lite.exporting.remaking import Remade
from fusionbench_lite.methods.api import Merged
from fusionbench_lite.weights.compact import LowRank, Masked, Own

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.weights.compact import PerTask

WEIGHTS, MASKS, ADAPTERS, ROUTERS, TWIN = "weights", "masks", "adapters", "routers", "twin"
WHAT = {
    WEIGHTS: "one state dict",
    MASKS: "the pretrained weights, and for every task what is added to them: packed masks and factors of one vector, or low-rank "
    "factors",
    ADAPTERS: "one merged model, and small adapters for every task: the task of an input has to be known",
    ROUTERS: "the merged model, and the perceptrons of all experts, which routers mix anew for every example",
    TWIN: "the merged model, and what is left of every expert, which a router mixes anew for every example",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """One folder: `weights`, a whole state dict, and `parts`, the tensors that make it a model of its tasks, by kind."""

    kind: str
    weights: Mapping[str, Tensor]
    parts: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


Forms = Mapping[str | None, Callable[[], Form]]
"""By task, None for all tasks, what makes the form of a folder, so that one of them is in memory at a time."""


def forms(made: Remade, *, compact: bool = True) -> Forms:
    """Return what is written of a model; `compact` keeps one folder where a method stores one model per task in small tensors.

    Raises InputError for a model of a kind that is not known here.
    """
    model, tasks = made.model, made.plan.tasks
    if isinstance(model, Merged):
        if not model.per_task:
            return {None: lambda: Form(kind=WEIGHTS, weights=model.state_dict())}
        if compact and made.stored is not None and any(part.on_base for part in made.stored.values()):
            return {None: lambda: Form(kind=MASKS, weights=made.suite.pretrained, parts=_stored(made.stored or {}, tasks))}
        return {task: _of_task(model.state_dict, task) for task in tasks}
    if isinstance(model, Routing):
        return {None: lambda: _routed(model)}
    if isinstance(model, Twin):
        return {None: lambda: _twin(model)}
    if isinstance(model, (FeatureSurgery, BlockSurgery, AdapterTraining)):
        if isinstance(model, AdapterTraining) and not _keeps_adapters(model):
            return {None: lambda: Form(kind=WEIGHTS, weights=model.merged())}
        return {None: lambda: Form(kind=ADAPTERS, weights=model.merged(), parts=_learned(model))}
    entry = registry.get(made.plan.method)
    if entry.routed or "merged" in entry.inputs:
        raise InputError(
            f"{made.record.path.name}: {entry.id} runs more than merged weights ({type(model).__name__}), and its parts have no "
            "form in files here: its learned tensors are in the record (learned.safetensors)"
        )
    if entry.by_task is not None and entry.by_task(entry.configure(**made.plan.values)):
        return {task: _of_task(model.merged, task) for task in tasks}
    return {None: lambda: Form(kind=WEIGHTS, weights=model.merged())}


def _of_task(weights: Callable[[str], Mapping[str, Tensor]], task: str) -> Callable[[], Form]:
    return lambda: Form(kind=WEIGHTS, weights=weights(task))


def _stored(stored: Mapping[str, PerTask], tasks: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the stored form as `vector/`, `bits/`, `left/T/`, `right/T/` and `own/T/` with the tensor's name behind, and `scales`.

    T is the number of the task.
    """
    parts: dict[str, Tensor] = {}
    for name, part in stored.items():
        if isinstance(part, Masked):
            parts |= {f"vector/{name}": part.vector, f"bits/{name}": part.bits}
            if part.scales is not None:
                parts["scales"] = part.scales
        elif isinstance(part, LowRank):
            for number, (left, right) in enumerate(zip(part.left, part.right, strict=True)):
                parts |= {f"left/{number}/{name}": left, f"right/{number}/{name}": right}
        elif isinstance(part, Own):
            parts |= {f"own/{number}/{name}": part.tensor(task) for number, task in enumerate(tasks)}
        else:
            raise InputError(f"{name!r} is stored as {type(part).__name__}, which has no form in files here: give compact=false")
    return parts


def _learned(model: Procedure) -> dict[str, Tensor]:
    """Return what was learned, `state/<name>`, and what it needs beside: `extra/<name>`."""
    learned = {f"state/{name}": tensor for name, tensor in model.learned().items() if name != "raw"}
    return learned | {f"extra/{name}": tensor for name, tensor in model.extras().items()}


def _routed(model: Routing) -> Form:
    """The routers, and of every perceptron the pretrained tensors (`base/`) and the experts' (`own/T/`)."""
    parts, experts = _learned(model), model.experts
    for name in routed_names(model):
        parts[f"base/{name}"] = experts.pretrained[name]
        parts |= {f"own/{number}/{name}": experts.by_task[task][name] for number, task in enumerate(model.tasks)}
    return Form(kind=ROUTERS, weights=model.merged(), parts=parts)


def routed_names(model: Routing) -> list[str]:
    """Return the tensors that routers mix."""
    layers = [path for name in model.routers for path in linear_layers(model.frozen.model, name, model.experts.specs)]
    return [f"{path}.{kind}" for path in layers for kind in ("weight", "bias") if f"{path}.{kind}" in model.experts.specs]


def _twin(model: Twin) -> Form:
    """The router, and what gates add to the merged tensors: `left/` and `right/` of a matrix, else `whole/`."""
    parts = _learned(model)
    for name, vectors in model.vectors.items():
        if isinstance(vectors, RoutedFactors):
            parts |= {f"left/{name}": vectors.left, f"right/{name}": vectors.right}
        else:
            parts[f"whole/{name}"] = vectors.vectors
    return Form(kind=TWIN, weights=model.merged(), parts=parts)


def _keeps_adapters(model: AdapterTraining) -> bool:
    return model.settings.kept and model.settings.place != "none"
