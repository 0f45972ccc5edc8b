"""A trial of a user's model on one or two examples, before any work is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench_lite.adaptation.engine.core import call
from fusionbench_lite.adaptation.engine.foreign import first_line
from fusionbench_lite.adaptation.engine.ties import repeats
from fusionbench_lite.errors import MergeError
from fusionbench_lite.models.inputs import Inputs, part_of, plain
from fusionbench_lite.weights.specs import StateDict

_FIX = "take detach, no_grad, inference_mode, copies of weights and activation checkpointing out of its forward"


def check_runs(model: nn.Module, pretrained: StateDict, example: Inputs, *, gradient: bool) -> None:
    """Run one or two examples with the pretrained weights, and with `gradient` take one through them.

    Raises MergeError for a model that does not run on them or returns no features; one that runs modules without a gradient; one
    that computes activations again in the backward pass, when the merged weights are not in place any more.
    """
    of_model = model.state_dict()
    again = repeats(model, pretrained)
    weights = {n: plain(t).to(of_model[n].device) for n, t in pretrained.items() if n in of_model and n not in again}
    leaves = [tensor.requires_grad_() for tensor in weights.values() if tensor.is_floating_point()] if gradient else []
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(gradient), contextlib.suppress(torch.OutOfMemoryError):
        if not gradient:
            call(model, weights, part_of(example, 0, 2))
            return
        with _noting(model, lambda name, module: not torch.is_grad_enabled() and _holds(name, module, weights)) as without:
            features = call(model, weights, part_of(example, 0, 2))
        if without:
            raise MergeError(f"{type(model).__name__} runs {without[0]} without a gradient: {_FIX}")
        with _noting(model, lambda name, module: True) as again_run:
            gradients = _gradients(model, features, leaves, again_run)
        if again_run:
            raise _recomputed(model, again_run)
        if all(found is None for found in gradients):
            raise MergeError(
                f"the features of {type(model).__name__} take no gradient from its weights, and nothing would be learned: {_FIX}"
            )


def _recomputed(model: nn.Module, modules: list[str]) -> MergeError:
    return MergeError(
        f"{type(model).__name__} runs {modules[0]} again in the backward pass, when merged weights are not in place: "
        "switch activation checkpointing off, such as by model.set_grad_checkpointing(False)"
    )


def _gradients(model: nn.Module, features: Tensor, leaves: list[Tensor], again_run: list[str]) -> tuple[Tensor | None, ...]:
    """Return the gradients of the features' sum, none where they take none; `again_run` lists modules that ran for them."""
    if not features.requires_grad:
        return ()
    try:
        found: tuple[Tensor | None, ...] = torch.autograd.grad(features.sum(), leaves, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if again_run:  # such as by a tensor of another shape than in the first pass
            raise _recomputed(model, again_run) from error
        raise MergeError(
            f"{type(model).__name__} has no gradient, {first_line(error)}: give a model whose features can be differentiated"
        ) from error
    return found


@contextlib.contextmanager
def _noting(model: nn.Module, noted: Callable[[str, nn.Module], bool]) -> Iterator[list[str]]:
    """Yield a list of the modules that run in the block and are noted, by name."""
    found: list[str] = []

    def hook_of(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, _: Any) -> None:
            if noted(name, module):
                found.append(repr(name) if name else "itself")

        return hook

    hooks = [module.register_forward_pre_hook(hook_of(name)) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _holds(name: str, module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    return any(f"{name}.{own}".lstrip(".") in weights for own, _ in module.named_parameters(recurse=False))
