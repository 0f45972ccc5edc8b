"""How much a method learns and keeps, as it declares it; nothing is loaded and torch is not imported."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from fusionbench_lite import registry, suites
from fusionbench_lite.errors import InputError
from fusionbench_lite.models.architectures import MODELS, architecture
from fusionbench_lite.weights.architecture import Architecture
from fusionbench_lite.weights.costs import Learned

UNDECLARED = Learned(None, note="it does not say what it learns")


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
    of_model = {"matrices": of.policy} if "matrices" in entry.defaults else {}
    return UNDECLARED if entry.learned is None else entry.learned(of, tasks, entry.configure(**{**of_model, **(values or {})}))
