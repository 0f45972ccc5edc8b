"""What single singular components of the task vectors do to the losses of a merged model (AdaRank, Figures 1 and 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from fusionbench_lite import registry
from fusionbench_lite.errors import MergeError, did_you_mean
from fusionbench_lite.methods.api import merge
from fusionbench_lite.models.heads import entropy
from fusionbench_lite.models.inputs import Inputs
from fusionbench_lite.models.modes import evaluating, with_weights
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import decompose, rank_of, top_singular
from fusionbench_lite.weights.matrices import is_factorised

Head = Callable[[Tensor], Tensor]
Batches = Mapping[str, tuple[Inputs, Tensor | None]]
"""Inputs and, for cross entropy, labels of each task."""


@dataclasses.dataclass(frozen=True)
class Start:
    """A merged model, the point its task vectors are taken from, and the coefficient of each task."""

    weights: Mapping[str, Tensor]
    origin: Callable[[str], Tensor]
    scaling: Sequence[float]


def matrices(experts: Experts, policy: str, wanted: str = "all") -> list[str]:
    """Return the matrices of a policy, or the one that is wanted; raises MergeError where there is none."""
    names = [name for name in experts.names if is_factorised(name, experts.shape(name), policy)]
    if wanted != "all":
        if wanted not in names:
            raise MergeError(f"unknown matrix {wanted!r}: {did_you_mean(wanted, names)}")
        return [wanted]
    if not names:
        raise MergeError(f"the matrices policy {policy!r} selects no tensor of this model: choose another method.matrices")
    return names


def start_of(method: str, experts: Experts, values: Mapping[str, Any]) -> Start:
    """Return where a method starts: AdaMerging and AdaRank before their first step, or a data-free method's result.

    Raises MergeError for methods whose start is not one merged model of task vectors.
    """
    base, _, kind = method.rpartition("_")
    scaling = values.get("scaling", 1 / len(experts) if method == "weight_averaging" else 1.0)
    each = [float(scaling[task]) if isinstance(scaling, Mapping) else float(scaling) for task in experts.tasks]
    if values.get("clamp"):
        each = [min(max(factor, 0.0), 1.0) for factor in each]
    if base == "adamerging" and kind in ("taskwise", "layerwise"):
        return Start(_truncated(experts, values, experts.base, each, None), experts.base, each)
    if base in ("adarank", "adamerging") and kind in ("ta", "cart"):
        origin = experts.mean if kind == "cart" else experts.base
        return Start(_truncated(experts, values, origin, each, values.get("rank_ratio")), origin, each)
    entry = registry.get("tsv_m" if base in ("adarank", "adamerging") and kind == "tsvm" else method)
    if entry.adaptive or entry.per_task or entry.inputs:
        raise MergeError(
            f"method {method!r} does not start at one merged model of task vectors: choose adamerging_*, adarank_* or a "
            "data-free method with one model"
        )
    given = {name: value for name, value in values.items() if name in entry.defaults}
    merged = merge(entry.id, experts.pretrained, experts.by_task, **given)
    return Start(merged.state_dict(), experts.mean if method == "cart" else experts.base, each)


def _truncated(
    experts: Experts, values: Mapping[str, Any], origin: Callable[[str], Tensor], scaling: Sequence[float], ratio: float | None
) -> dict[str, Tensor]:
    """Return θ_o + Σ_t λ_t τ_t, with ⌊ρr⌋ components of the matrices that carry masks; ratio None keeps all."""
    merged = dict(experts.pretrained)
    for name in experts.names:
        total, start = origin(name).clone(), origin(name)
        masked = is_factorised(name, start.shape, str(values.get("matrices", "attn_mlp")))
        for task, factor in zip(experts.tasks, scaling, strict=True):
            vector = experts.expert(task, name) - start
            if masked and ratio is not None and ratio < 1:
                left, sizes, right = top_singular(vector, rank_of(ratio, min(vector.shape)), f"{name!r} of expert {task!r}")
                vector = ((left * sizes) @ right).to(total.dtype)
            total += factor * vector
        merged[name] = total.to(experts.specs[name].dtype).view(experts.specs[name].shape)
    return merged


def changes(
    model: nn.Module, experts: Experts, start: Start, heads: Mapping[str, Head], batches: Batches,
    names: Sequence[str], *, objective: str = "entropy", top: int = 2, progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Return a line per matrix, task and component with the change of every task's loss when the component is added.

    Columns: matrix, task, component, singular_value, first_order/TASK and, for components below `top`, exact/TASK (nan
    beyond). To first order the change of L_j is λ_t s_r u_rᵀ G_j v_r with G_j = ∂L_j/∂W (docs/decisions.md, D4).
    """
    tasks, frames = experts.tasks, []
    with evaluating(model):
        slopes = gradients(model, start.weights, names, heads, batches, objective)
        at_start = losses(model, start.weights, heads, batches, objective)
        for number, name in enumerate(names):
            if progress is not None:
                progress("adding components", number + 1, len(names))
            origin = start.origin(name)
            for task, factor in zip(tasks, start.scaling, strict=True):
                left, sizes, right = decompose(experts.expert(task, name) - origin, f"{name!r} of expert {task!r}")
                frame = pd.DataFrame({"matrix": name, "task": task, "component": range(len(sizes))})
                frame["singular_value"] = sizes.cpu().numpy()
                for other in batches:
                    slope = slopes[other][name].to(left.dtype)
                    frame[f"first_order/{other}"] = (factor * sizes * ((slope @ right.T) * left).sum(0)).cpu().numpy()
                exact = {f"exact/{other}": [float("nan")] * len(sizes) for other in batches}
                for index in range(min(top, len(sizes))):
                    added = factor * sizes[index] * torch.outer(left[:, index], right[index])
                    moved = {**start.weights, name: (start.weights[name] + added).to(start.weights[name].dtype)}
                    for other, loss in losses(model, moved, heads, batches, objective).items():
                        exact[f"exact/{other}"][index] = loss - at_start[other]
                frames.append(frame.assign(**exact))
    return pd.concat(frames, ignore_index=True)


def losses(
    model: nn.Module, weights: Mapping[str, Tensor], heads: Mapping[str, Head], batches: Batches,
    objective: str,
) -> dict[str, float]:
    """Return each task's mean loss of the model with these weights."""
    with torch.no_grad():
        return {
            task: float(_loss(model, weights, heads[task], inputs, labels, objective))
            for task, (inputs, labels) in batches.items()
        }


def gradients(
    model: nn.Module, weights: Mapping[str, Tensor], names: Sequence[str],
    heads: Mapping[str, Head], batches: Batches, objective: str,
) -> dict[str, dict[str, Tensor]]:
    """Return G_j = ∂L_j/∂W of every task j and matrix; zeros for a matrix that the forward pass does not read."""
    leaves = {name: weights[name].detach().clone().requires_grad_() for name in names}
    slopes_of = {}
    for task, (inputs, labels) in batches.items():
        loss = _loss(model, {**weights, **leaves}, heads[task], inputs, labels, objective)
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        slopes_of[task] = {
            name: torch.zeros_like(leaf) if slope is None else slope
            for (name, leaf), slope in zip(leaves.items(), slopes, strict=True)
        }
    return slopes_of


def _loss(
    model: nn.Module, weights: Mapping[str, Tensor], head: Head, inputs: Inputs,
    labels: Tensor | None, objective: str,
) -> Tensor:
    names = model.state_dict().keys()
    logits = head(with_weights(model, {name: weights[name] for name in weights if name in names})(inputs))
    if objective == "entropy":
        return entropy(logits).mean()
    if labels is None:
        raise MergeError("cross entropy needs labels: give batches of (inputs, labels)")
    return -torch.log_softmax(logits, -1).gather(-1, labels[:, None]).mean()
