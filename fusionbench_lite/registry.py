"""Methods, found by name.

A method is one file in `fusionbench_lite.methods` (data-free) or `fusionbench_lite.adaptation` (adaptive): a frozen
dataclass of hyperparameters whose fields state their ranges, and a function that carries the id. There is no list to
edit; the files are scanned. Nothing here imports torch, so a configuration is checked before torch is paid for.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.fields import checked, kinds

if TYPE_CHECKING:
    from fusionbench_lite.weights.costs import CostOf, LearnedOf

REFERENCE, DATA_FREE, SVD, ADAPTIVE = "Reference", "Data-free", "Data-free, SVD-based", "Test-time adaptive"
STATISTICS, PER_TASK, SOME = "Training statistics", "One model per task", "Some of the experts"
ADAPTERS, ROUTED = "Adapters per task", "Routed per example"
FAMILIES = (REFERENCE, DATA_FREE, SVD, STATISTICS, ADAPTIVE, ADAPTERS, ROUTED, PER_TASK, SOME)
"""How methods are grouped in tables and pictures. SOME is not a method's, but that of a run on some of the experts."""
UNRANKED = (REFERENCE, ADAPTERS, ROUTED, PER_TASK, SOME)
"""Rows that do not answer the question of the others: one model, as large as one expert, that does what all do."""

STATISTIC_INPUTS = ("fisher", "gram", "gradients")
"""Inputs of methods that are statistics of training examples."""

_PACKAGES = ("fusionbench_lite.methods", "fusionbench_lite.adaptation")
_REGISTERED: dict[str, Method] = {}
_LEARNED: dict[str, Method] = {}
"""The learning form of methods that also have a form without data, which reads what was learned before."""


@dataclasses.dataclass(frozen=True)
class NoHyperparameters:
    """The hyperparameters of a method that has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A method as the registry knows it.

    `inputs` names the extra mappings that the method reads besides the weights, such as the statistics of Fisher
    merging; `per_task` says that it keeps one model per task; `adaptive` that it needs unlabelled data; `routed` that its
    model mixes the experts anew for every example, so that no merged weights describe it. `training` tells of hyperparameters
    whether the steps of an adaptation read images of the training split, `by_task` whether it makes a model for every task; None:
    never. `label` is the papers' spelling
    of the name, and `family` one of `FAMILIES`. `learned` says what it learns and keeps, and `cost` what its runs take, in
    the words of `weights.costs`; None: it does not say. `noisy`: its steps draw numbers on the device of the run, so that another
    kind of device is another random stream.
    """

    id: str
    function: Callable[..., Any]
    hyperparameters: type
    per_task: bool = False
    adaptive: bool = False
    inputs: tuple[str, ...] = ()
    routed: bool = False
    training: Callable[[Any], bool] | None = None
    by_task: Callable[[Any], bool] | None = None
    label: str = ""
    family: str = DATA_FREE
    learned: LearnedOf | None = None
    cost: CostOf | None = None
    noisy: bool = False

    @property
    def accepted(self) -> dict[str, str]:
        """What every hyperparameter may be, in the words of the error that refuses anything else."""
        return {field.name: str(field.metadata["accepts"]) for field in dataclasses.fields(self.hyperparameters)}

    @property
    def defaults(self) -> dict[str, Any]:
        """Hyperparameter names and default values, in the order of their declaration."""
        return {field.name: field.default for field in dataclasses.fields(self.hyperparameters)}

    def known_by(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that a record is known by: without hyperparameters that were added when there were records
        already (`later`), where they have their default and so change nothing."""
        later = {field.name: field.default for field in dataclasses.fields(self.hyperparameters) if field.metadata["later"]}
        return {name: value for name, value in values.items() if name not in later or value != later[name]}

    def reads_training(self, values: Mapping[str, Any]) -> bool:
        """Say whether with these hyperparameters the steps of an adaptation read images of the training split."""
        return self.training is not None and self.training(self.configure(**values))

    def needs_expert(self, values: Mapping[str, Any]) -> str | None:
        """Say why, with these hyperparameters, a task without an expert cannot be evaluated; None where one model does all."""
        if self.per_task or (self.by_task is not None and self.by_task(self.configure(**values))):
            return "has no model for a task without an expert"
        if self.routed:
            return "learns to tell the tasks of its experts apart, and has nothing for another"
        return "has no adapter for a task without an expert" if "merged" in self.inputs else None

    def configure(self, **given: Any) -> Any:
        """Return the checked hyperparameters; raises MergeError for an unknown name or a value out of range."""
        known_names = kinds(self.hyperparameters)
        for name in given:
            if name not in known_names:
                hint = did_you_mean(name, known_names) if known_names else "it has none"
                raise MergeError(f"method {self.id!r} has no hyperparameter {name!r}: {hint}")
        return self.hyperparameters(**checked(self.hyperparameters, given, f"method {self.id!r}: ", MergeError))


def method(
    id: str, hyperparameters: type = NoHyperparameters, *, per_task: bool = False, adaptive: bool = False,
    inputs: tuple[str, ...] = (), routed: bool = False, training: Callable[[Any], bool] | None = None,
    by_task: Callable[[Any], bool] | None = None, label: str = "", family: str = "", learned: LearnedOf | None = None,
    cost: CostOf | None = None, noisy: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the method `id`, which others know by what is declared here (see `Method`).

    Without a label it is called by its id, and the family follows from the rest. Raises ValueError for an unknown family.
    """
    if family and family not in FAMILIES:
        raise ValueError(f"method {id!r}: unknown family {family!r}: {did_you_mean(family, FAMILIES)}")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        entry = Method(
            id=id, function=function, hyperparameters=hyperparameters, per_task=per_task, adaptive=adaptive, inputs=inputs,
            routed=routed, training=training, by_task=by_task, label=label or id,
            family=family or _family(per_task, adaptive, inputs, routed), learned=learned, cost=cost, noisy=noisy,
        )
        other = _REGISTERED.get(id)
        if other is not None and adaptive != other.adaptive:  # two forms, whichever is read first
            _LEARNED[id], entry = (entry, other) if adaptive else (other, entry)
        _REGISTERED[id] = entry
        return function

    return register


def _family(per_task: bool, adaptive: bool, inputs: tuple[str, ...], routed: bool) -> str:
    """Return the family of a method that names none."""
    if per_task or routed:
        return PER_TASK if per_task else ROUTED
    if "merged" in inputs:
        return ADAPTERS
    if adaptive:
        return ADAPTIVE
    return STATISTICS if set(STATISTIC_INPUTS) & set(inputs) else DATA_FREE


@functools.cache
def _files() -> dict[str, Path]:
    """Return the files that may hold methods, by the name of their module."""
    paths = {}
    for name in _PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
            if not module.ispkg:
                paths[f"{name}.{module.name}"] = Path(getattr(module.module_finder, "path", "")) / f"{module.name}.py"
    return paths


@functools.cache
def _scan() -> None:
    for module in _files():
        importlib.import_module(module)


@functools.cache
def _scan_for(id: str) -> None:
    """Import the files that mention an id, and those whose text is not there."""
    for module, path in _files().items():
        if module not in sys.modules and (not path.is_file() or id in _text(path)):
            importlib.import_module(module)


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def names() -> list[str]:
    """Return the ids of all methods, sorted."""
    _scan()
    return sorted(_REGISTERED)


def find(id: str) -> Method | None:
    """Return the method of this id, None where there is none, as for a record of somebody else's method.

    Only the files that mention it are imported: a table of few methods does not wait for all of them.
    """
    _scan_for(id)
    return _REGISTERED.get(id)


def get(id: str, *, learning: bool = False) -> Method:
    """Return the method of this id; raises MergeError with the nearest id for an unknown one.

    Of a method with two forms (traditional_mtl) it is the one that reads trained weights, unless `learning` is asked for.
    """
    _scan()
    if learning and id in _LEARNED:
        return _LEARNED[id]
    if not isinstance(id, str) or id not in _REGISTERED:
        raise MergeError(f"unknown method {id!r}: {did_you_mean(str(id), _REGISTERED)}")
    return _REGISTERED[id]
