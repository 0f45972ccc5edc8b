"""How much a run starts from, learns and keeps, as its method declares it; nothing is loaded and torch is not imported."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from fusionbench_lite import registry, suites
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.models.architectures import MODELS, architecture
from fusionbench_lite.planning.plan import Plan
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.costs import Learned

PARAMETERS = ("total", "learned", "extra", "relative", "share")
UNDECLARED = Learned(None, note="it does not say what it learns")
NOTHING = Learned({})
"""Of a merge into one model without data."""


def parameters(plan: Plan, what: str) -> int | float:
    """Return a number of parameters of a run, as papers count them (docs/decisions.md, D13).

    `total`: of the models that it starts from, one for `pretrained` and else the experts. `learned`: in all phases together.
    `extra`: kept at inference beyond one encoder and the heads. `relative`: all that is kept, in encoders. `share`: learned of the
    total, in percent. Raises InputError for another number, a model without a count, and a method that does not apply to it.
    """
    if what not in PARAMETERS:
        raise InputError(f"unknown number of parameters {what!r}: {did_you_mean(what, PARAMETERS)}")
    of, tasks = plan.kind.counted(plan.wanted), len(plan.experts or plan.tasks)
    if of is None:
        raise InputError(f"nothing says which tensors model {plan.model!r} has: its parameters cannot be counted")
    total = of.parameters * (1 if plan.method == "pretrained" else tasks)
    if what == "total":
        return total
    size = learned(of, tasks, plan.method, plan.values)
    if size.counts is None or size.total is None:
        raise InputError(f"method {plan.method!r} has no number of parameters for {plan.model}: {size.note}")
    values = {"learned": size.total, "extra": size.extra, "relative": models_kept(of, size), "share": 100 * size.total / total}
    return values[what]


@functools.cache
def architecture_of(model: str) -> Architecture:
    """Return a model as papers count it, or as its modality merges it. Raises InputError for what is neither."""
    if model in MODELS or model not in suites.model_names():
        return architecture(model)
    from fusionbench_lite.planning.command_line import plan_of

    plan = plan_of([f"model={model}"])
    encoder = plan.kind.architecture(plan.wanted)
    if encoder is None:
        raise InputError(f"nothing says which tensors model {model!r} has: choose one of {', '.join(MODELS)}")
    return encoder


def learned(of: Architecture, tasks: int, method: str, values: Mapping[str, Any] | None = None) -> Learned:
    """Return what a method learns and keeps with these hyperparameters, its defaults where `values` has none.

    Where it chooses matrices, they are those of the architecture's blocks. Raises MergeError for an unknown method or
    hyperparameter.
    """
    entry = registry.get(method, learning=True)
    if entry.learned is None:
        return NOTHING if not (entry.adaptive or entry.per_task or entry.routed) else UNDECLARED
    of_model = {"matrices": of.policy} if "matrices" in entry.defaults else {}
    return entry.learned(of, tasks, entry.configure(**{**of_model, **(values or {})}))


def models_kept(of: Architecture, size: Learned) -> float:
    """Return what is kept at inference in encoders, heads aside."""
    return (of.parameters + size.extra) / of.parameters
