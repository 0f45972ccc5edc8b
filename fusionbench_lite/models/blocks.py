"""Where a model's transformer blocks and multilayer perceptrons are, whoever wrote the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fusionbench_lite.errors import MergeError


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks in order.

    They are the entries of the longest ModuleList or Sequential whose entries are all of one class and hold
    parameters; of equals the first. Raises MergeError where there is none.
    """
    best: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            entries = list(module)
            same = len({type(entry) for entry in entries}) == 1
            if same and len(entries) > len(best) and all(any(True for _ in entry.parameters()) for entry in entries):
                best = entries
    if not best:
        raise MergeError(
            f"{type(model).__name__} has no list of transformer blocks: this method needs an nn.ModuleList or "
            "nn.Sequential whose entries are of one class"
        )
    return best


def perceptrons(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules named `mlp` that hold parameters, by full name. Raises MergeError where there is none."""
    layers = {
        name: module for name, module in model.named_modules()
        if name.rpartition(".")[2] == "mlp" and any(True for _ in module.parameters())
    }
    if not layers:
        raise MergeError(f"{type(model).__name__} has no module named 'mlp': this method routes transformer MLPs")
    return layers


def hidden(output: Any) -> Tensor:
    """Return the hidden states in a block's output: itself, or the first entry of a tuple."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def with_hidden(output: Any, states: Tensor) -> Any:
    """Return the block's output with other hidden states."""
    return (states, *output[1:]) if isinstance(output, tuple) else states
