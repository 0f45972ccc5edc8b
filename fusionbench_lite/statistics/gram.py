"""Gram matrices of the inputs of linear layers (Jin et al. 2023), the statistic of RegMean."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.inputs import call
from fusionbench_lite.models.modes import evaluating
from fusionbench_lite.statistics.inputs import inputs_of


def gram_matrices(
    model: nn.Module, batches: Iterable[Any], *, examples: int | None = None, named: bool = False
) -> dict[str, Tensor]:
    """Return G = (1/N_tok) Σ x xᵀ [n, n] of the inputs x of every linear layer, by the name of its weight, float32.

    `batches` yields unlabelled training inputs [B, …], or tuples and mappings that hold them; where `named`, mappings are
    the model's named inputs themselves. `examples` of them are used, all by default. The sum runs over all examples and all
    N_tok positions that the layer sees, in float64.

    Layers are `torch.nn.Linear` and transformers' `Conv1D` (whose weight is [n, m]) that are called. The projections
    of `torch.nn.MultiheadAttention` are not among them, as in the released code: in_proj is one packed tensor, and
    out_proj is used without a call of its layer, so RegMean takes their plain mean. A layer that several names refer
    to is listed under each; layers with a tied weight share the Gram matrix of all that the weight sees.

    The model runs in evaluation mode, and its modes are afterwards what they were. Raises MergeError: no examples or
    too few, inputs of a layer that are not finite.
    """
    weights = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    layers: dict[int, nn.Module] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        name = f"{prefix}.weight" if prefix else "weight"
        if isinstance(module, _kinds()) and name in weights and weights[name] is module.weight:
            names.setdefault(id(module.weight), []).append(name)
            layers[id(module)] = module
    sums: dict[int, Tensor] = {}
    tokens: dict[int, int] = {}

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given: Tensor = args[0] if args else next(iter(kwargs.values()))
        rows = given.detach().reshape(-1, given.shape[-1]).double()
        key = id(module.weight)
        if key not in sums:
            sums[key] = rows.new_zeros(rows.shape[1], rows.shape[1])
            tokens[key] = 0
        sums[key].addmm_(rows.T, rows)
        tokens[key] += len(rows)

    handles = [layer.register_forward_hook(add, with_kwargs=True) for layer in layers.values()]
    try:
        with torch.no_grad(), evaluating(model):
            for inputs in inputs_of(batches, examples, named=named):
                call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    result: dict[str, Tensor] = {}
    for key, total in sums.items():
        if tokens[key]:
            gram = ((total + total.T) / (2 * tokens[key])).float()
            if not bool(torch.isfinite(gram).all()):
                raise MergeError(f"the inputs of the layer of {names[key][0]!r} are not finite: check the checkpoint")
            result |= dict.fromkeys(names[key], gram)
    return {name: result[name] for name in weights if name in result}


def _kinds() -> tuple[type[nn.Module], ...]:
    """Return the classes of linear layers; transformers is asked only where the caller has imported it."""
    transformers: Any = sys.modules.get("transformers.pytorch_utils")
    return (nn.Linear,) if transformers is None else (nn.Linear, transformers.Conv1D)


