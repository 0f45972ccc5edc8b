"""The form in which a model leaves: its weights, and the small tensors beside them that some methods need."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from fusionbench_lite import registry
from fusionbench_lite.adaptation.learners.lazy_weights import LowRank, Whole
from fusionbench_lite.adaptation.learners.twin import Twin
from fusionbench_lite.adaptation.learners.wemoe import Routing, linear_layers
from fusionbench_lite.errors import InputError
from fusionbench_lite.exporting import layout
from fusionbench_lite.methods.api import Merged
from fusionbench_lite.models.blocks import perceptrons

if TYPE_CHECKING:
    from fusionbench_lite.adaptation.engine.procedure import Procedure
    from fusionbench_lite.exporting.remaking import Remade


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """`models`: state dicts by task, or one under "" for all. `learned` and `experts`: tensors by name beside them."""

    kind: str
    models: Mapping[str, Mapping[str, Tensor]]
    learned: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    experts: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


def form_of(made: Remade) -> Form:
    """Return the form of a model. Raises InputError for a method whose form is not known."""
    model, plan = made.model, made.plan
    if isinstance(model, Merged):
        if model.per_task:
            return _each(made)
        return Form(kind=layout.ONE, models={"": model.state_dict()})
    entry = registry.get(plan.method)
    if entry.by_task is not None and entry.by_task(entry.configure(**plan.values)):
        return _each(made)
    if isinstance(model, Routing):
        return _perceptrons(model)
    if isinstance(model, Twin):
        return _components(model, made)
    if entry.routed:
        raise InputError(f"{plan.method} routes its inputs in a way of its own, which export has no form for")
    if "merged" in entry.inputs and plan.values.get("adapters") != "none" and plan.values.get("judged") != "merged":
        learned = {name: tensor for name, tensor in model.learned().items() if name != "raw"}
        return Form(kind=layout.ADAPTERS, models={"": model.merged()}, learned=learned)
    return Form(kind=layout.ONE, models={"": model.merged()})


def _each(made: Remade) -> Form:
    of_task = made.model.state_dict if isinstance(made.model, Merged) else made.model.merged
    return Form(kind=layout.EACH, models=_ByTask(made.plan.tasks, of_task))


class _ByTask(dict[str, Mapping[str, Tensor]]):
    """The weights of every task, made when they are read: all of them need not be in memory at once."""

    def __init__(self, tasks: tuple[str, ...], of_task: object) -> None:
        super().__init__(dict.fromkeys(tasks, {}))
        self._of_task = of_task

    def __getitem__(self, task: str) -> Mapping[str, Tensor]:
        weights: Mapping[str, Tensor] = self._of_task(task)  # type: ignore[operator]
        return weights


def _perceptrons(model: Routing) -> Form:
    """θ0 in the perceptrons and the merge elsewhere, and the experts' perceptrons as they are."""
    names = routed_names(model)
    experts = model.experts
    shared = {
        name: experts.pretrained[name] if name in names else tensor for name, tensor in model.frozen.state_dict().items()
    }
    own = {f"{task}/{name}": experts.by_task[task][name] for task in model.tasks for name in names}
    return Form(kind=layout.PERCEPTRONS, models={"": shared}, learned=model.learned(), experts=own)


def routed_names(model: Routing) -> list[str]:
    """Return the tensors of the linear layers that are mixed."""
    specs = model.experts.specs
    paths = [path for name in perceptrons(model.frozen.model) for path in linear_layers(model.frozen.model, name, specs)]
    return [name for path in paths for name in (f"{path}.weight", f"{path}.bias") if name in specs]


def _components(model: Twin, made: Remade) -> Form:
    tensors: dict[str, Tensor] = {}
    for name, vectors in model.vectors.items():
        if isinstance(vectors, Whole):
            tensors[f"whole/{name}"] = vectors.vectors
        elif isinstance(vectors, LowRank):
            tensors |= {f"left/{name}": vectors.left, f"right/{name}": vectors.right}
    learned = {**model.learned(), **model.extras()}
    return Form(kind=layout.COMPONENTS, models={"": model.merged()}, learned=learned, experts=tensors)
