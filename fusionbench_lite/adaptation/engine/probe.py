"""What a forward pass shows of a model whose code is not known: hidden states behind its blocks, and their widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.core import call
from fusionbench_lite.adaptation.engine.procedure import Context, Examples
from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.blocks import blocks, hidden, with_hidden
from fusionbench_lite.models.inputs import Inputs

Change = Callable[[Tensor, int], Tensor]
"""`change(states, number)` returns the hidden states that leave block `number` (from 0) in place of `states`."""


def call_hooked(
    model: nn.Module, weights: Mapping[str, Tensor], inputs: Inputs, modules: Sequence[nn.Module], change: Change
) -> Tensor:
    """Return the model's features where `change` replaces what each of the modules puts out.

    Modules run in evaluation mode and are left without hooks. Raises MergeError where one does not run exactly once.
    """
    runs = [0] * len(modules)

    def hook_of(number: int) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            runs[number] += 1
            return with_hidden(output, change(hidden(output), number))

        return hook

    handles = [module.register_forward_hook(hook_of(number)) for number, module in enumerate(modules)]
    try:
        features = call(model, weights, inputs)
    finally:
        for handle in handles:
            handle.remove()
    for number, times in enumerate(runs):
        if times != 1:
            raise MergeError(
                f"block {number} of {type(model).__name__} ran {times} times in a forward pass, adapters need it to run once"
            )
    return features


def states(
    model: nn.Module, weights: Mapping[str, Tensor], inputs: Inputs, modules: Sequence[nn.Module]
) -> tuple[list[Tensor], Tensor]:
    """Return the hidden states that leave each of the modules, and the model's features."""
    seen: list[Tensor] = [torch.empty(0)] * len(modules)

    def keep(output: Tensor, number: int) -> Tensor:
        seen[number] = output
        return output

    features = call_hooked(model, weights, inputs, modules, keep)
    return seen, features


def token_mean(hidden_states: Tensor) -> Tensor:
    """Return the mean over tokens, [B, d] from [B, N, d]; [B, d] counts as one token."""
    return hidden_states.mean(-2) if hidden_states.dim() == 3 else hidden_states


def widths(
    model: nn.Module, weights: Mapping[str, Tensor], example: Inputs, modules: Sequence[nn.Module] | None = None
) -> tuple[list[int], int]:
    """Return the width of what leaves each of the modules (default: the transformer blocks), and that of the features.

    One example of `example` is run through the model. Raises MergeError for outputs that are not [B, N, d] or [B, d].
    """
    modules = blocks(model) if modules is None else modules
    one = Examples(example).part(0, 1).inputs
    assert one is not None
    with torch.no_grad():
        outputs, features = states(model, weights, one, modules)
    if features.dim() != 2:
        raise MergeError(f"{type(model).__name__} returns {tuple(features.shape)} for one example, features [1, d] are needed")
    for number, output in enumerate(outputs):
        if output.dim() not in (2, 3) or len(output) != 1:
            raise MergeError(
                f"block {number} of {type(model).__name__} returns {tuple(output.shape)} for one example, adapters need "
                "hidden states [1, N, d] or [1, d]"
            )
    return [output.shape[-1] for output in outputs], features.shape[-1]


def example_of(context: Context, who: str) -> Inputs | None:
    """Return the context's example batch; None where there is none and no step is to come.

    Raises MergeError where steps are to come: widths of adapters are found by running an example.
    """
    if context.example is None and context.steps:
        raise MergeError(f"{who} finds the widths of its adapters by running a batch, and there is none: add batches")
    return context.example
