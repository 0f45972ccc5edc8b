"""The merged model that the adapters of a method sit on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusionbench_lite import registry
from fusionbench_lite.errors import MergeError
from fusionbench_lite.lazy import torch
from fusionbench_lite.methods.api import merged_weights
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.readers import open_weights
from fusionbench_lite.weights.specs import check_same, specs_of

if TYPE_CHECKING:
    from torch import Tensor


def base_weights(experts: Experts, base: str, merged: Any = None) -> dict[str, Tensor]:
    """Return new merged weights: those of the method `base` with its defaults, or a copy of `merged`, a state dict
    or a path, where given.

    Raises MergeError for a base that needs data or keeps one model per task, and for `merged` weights that do not have
    the keys, shapes and dtypes of the pretrained model, or values that are not finite.
    """
    if merged is not None:
        return _checked(experts, merged)
    entry = registry.get(base)
    if entry.adaptive:
        raise MergeError(
            f"base {base!r} learns from data: adapt with it first and pass its weights as merged=adapted.state_dict()"
        )
    if entry.per_task:
        raise MergeError(f"base {base!r} keeps one model per task: use a base that merges into one model")
    if entry.inputs:
        raise MergeError(
            f"base {base!r} needs {' and '.join(entry.inputs)}: merge with it first and pass its weights as "
            "merged=result.state_dict()"
        )
    return merged_weights(base, experts)


def _checked(experts: Experts, merged: Any) -> dict[str, Tensor]:
    merged = open_weights(merged, experts.pretrained, "merged")
    check_same(experts.specs, "merged", specs_of(merged, "merged"))
    weights: dict[str, Tensor] = {}
    for name in experts.specs:
        first = experts.tied.get(name)
        weights[name] = merged[name].detach().clone() if first is None else weights[first]
        if weights[name].is_floating_point() and not bool(torch.isfinite(weights[name]).all()):
            raise MergeError(f"merged: {name!r} has values that are not finite; check the weights")
    return weights
