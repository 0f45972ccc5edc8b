"""Names of one tensor: a model may know it by several, as T5 does its embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import MergeError
from fusionbench_lite.weights.experts import Experts


def repeats(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return {name: an earlier one of `names`} for the names that are one parameter or buffer of the model."""
    named = itertools.chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    tensors = {name: id(tensor) for name, tensor in named}
    first: dict[int, str] = {}
    firsts = {}
    for name in names:
        if name in tensors and first.setdefault(tensors[name], name) != name:
            firsts[name] = first[tensors[name]]
    return firsts


def distinct(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with one name for each tensor of the model: the one that is listed first."""
    again = repeats(model, weights)
    return {name: tensor for name, tensor in weights.items() if name not in again}


def aliases(model: nn.Module, experts: Experts) -> dict[str, str]:
    """Return {name: the name that runs} for the names that follow another one's merge.

    They are the further names of one tensor of the model, whose values have to agree, and names that the model lacks of
    a tensor that is tied in the weights. Raises MergeError naming the tensors where they do not agree.
    """
    firsts = repeats(model, experts.pretrained)
    owners = {"the pretrained model": experts.pretrained}
    owners |= {f"expert {task!r}": weights for task, weights in experts.by_task.items()}
    for name, first in firsts.items():
        for who, weights in owners.items():
            if not torch.equal(weights[first], weights[name]):
                raise MergeError(
                    f"{who}: {first!r} and {name!r} differ, and the model has one tensor for both: "
                    "untie them in the model, or give weights that agree"
                )
    names = model.state_dict().keys()
    groups: dict[str, list[str]] = {}
    for name, first in experts.tied.items():
        groups.setdefault(first, [first]).append(name)
    for group in groups.values():
        runs = next((firsts.get(name, name) for name in group if name in names), group[0])
        firsts |= {name: runs for name in group if name not in names and name != runs}
    return firsts
