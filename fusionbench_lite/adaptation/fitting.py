"""Whether a user's model fits the weights: names, shapes, and what wrappers did to them."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import MergeError, MergeWarning
from fusionbench_lite.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusionbench_lite.weights.experts import Experts
    from fusionbench_lite.weights.specs import StateDict

ADDED = (
    "_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_model", "base_layer", "model",
    "parametrizations", "original", "original0", "original1",
)
"""What wrappers, adapters and parametrizations put into the names of tensors."""


def fitted(model: Any, experts: Experts) -> nn.Module:
    """Return the model under the names of the pretrained weights; it shares the tensors of what was given.

    Wrappers that change names alone come off (see `engine/wrappers.py`). Warns of weights that experts changed and the model
    lacks, and of tensors of the model that the weights lack. Raises MergeError where the model has something like such a weight,
    naming both, or no weight at all; for shapes that differ; for a model whose weights cannot be replaced.
    """
    _check_kind(model)
    from fusionbench_lite.adaptation.engine.wrappers import forms

    form = max(forms(model), key=lambda form: sum(name in experts.specs for name in _tensors(form)))
    lacking = _lacking(form, experts)
    if lacking:
        _check_lacking(lacking, form, experts)
    check_model(form, experts.pretrained)
    _warn_of_rest(form, experts)
    return form


def check_model(model: nn.Module, pretrained: StateDict) -> None:
    """Raise MergeError where the model cannot run with these weights: no key in common, or a shape that differs."""
    tensors = _tensors(model)
    if not any(name in tensors for name in pretrained):
        raise MergeError(
            f"the model has no tensor of the pretrained weights: it has {next(iter(tensors), 'none')!r}, "
            f"they have {next(iter(pretrained), 'none')!r}; build the encoder that the weights belong to"
        )
    for name, tensor in pretrained.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            raise MergeError(
                f"the model's {name!r} has shape {tuple(tensors[name].shape)}, the weights {tuple(tensor.shape)}; "
                "build the encoder that the weights belong to"
            )


def _check_kind(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise MergeError(f"model must be a torch.nn.Module, got {type(model).__name__}: wrap the function in one")
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise MergeError("the model is TorchScript, whose weights cannot be replaced: give the module that it was made of")
        if "FullyShardedDataParallel" in [kind.__name__ for kind in type(module).__mro__]:
            raise MergeError("the model is sharded by FSDP, and its weights cannot be replaced: give the module that it wraps")
    for name, tensor in _tensors(model).items():
        if tensor.is_meta:
            raise MergeError(f"the model's {name!r} is on the meta device, without values: call model.to_empty(device='cpu')")
        if hasattr(tensor, "full_tensor"):
            raise MergeError(f"the model's {name!r} is shared between devices, a DTensor: give the module before it is sharded")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state dict without what is no tensor, such as packed weights."""
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}


def _lacking(model: nn.Module, experts: Experts) -> list[str]:
    """Return the floating-point weights that an expert changed and the model lacks under each of their names."""
    names = _tensors(model).keys()
    present = {experts.tied.get(name, name) for name in experts.specs if name in names}
    lacking = [name for name in experts.floating if name not in names and experts.tied.get(name, name) not in present]
    some = len(lacking) < len(experts.specs)
    return [name for name in lacking if not some or _is_changed(name, experts)]


def _is_changed(name: str, experts: Experts) -> bool:
    base = experts.pretrained[name]
    return any(not torch.equal(base, weights[name]) for weights in experts.by_task.values())


def _check_lacking(lacking: list[str], model: nn.Module, experts: Experts) -> None:
    """Raise MergeError where weights that the model lacks are there under another name, or none is there; warn of others."""
    tensors = _tensors(model)
    free = {name: tensor for name, tensor in tensors.items() if name not in experts.specs}
    name, alike = next(((n, found) for n in lacking if (found := _alike(n, experts, free))), (lacking[0], None))
    if len(free) == len(tensors):
        there = alike or next(iter(tensors), "none")
        raise MergeError(
            f"the model has no tensor of the pretrained weights: it has {there!r}, they have {name!r}; {_fix(alike, free)}"
        )
    what = f"the model lacks {len(lacking)} of the {len(experts.specs)} weights"
    if alike is not None:
        raise MergeError(f"{what}: for {name!r} it has {alike!r}; {_fix(alike, free)}")
    warnings.warn(
        f"{what}, {name!r} among them: they take no part in its features, and are merged with the coefficients of the start",
        MergeWarning, stacklevel=5,
    )


def _alike(name: str, experts: Experts, free: Mapping[str, Tensor]) -> str | None:
    """Return which of the model's tensors without weights could be the one of this name."""
    bare = _bare(name)
    for other in free:
        if _bare(other) == bare or f".{other}".endswith(f".{name}") or f".{name}".endswith(f".{other}"):
            return other
    fitting = [other for other, tensor in free.items() if tensor.shape == experts.specs[name].shape]
    return next(iter(difflib.get_close_matches(name, fitting, n=1, cutoff=0.5)), None)


def _bare(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split(".") if part not in ADDED)


def _fix(alike: str | None, free: Mapping[str, Tensor]) -> str:
    if any("base_layer" in name.split(".") for name in free):
        return "take the adapters off: model.unload()"
    if alike is None:
        return "build the encoder that the weights belong to"
    if "parametrizations" in alike.split("."):
        return "take its parametrization off: torch.nn.utils.parametrize.remove_parametrizations"
    return "give pretrained and every expert the model's names, or build the encoder that the weights belong to"


def _warn_of_rest(model: nn.Module, experts: Experts) -> None:
    rest = [n for n, tensor in _tensors(model).items() if n not in experts.specs and tensor.is_floating_point()]
    from fusionbench_lite.adaptation.engine.ties import repeats

    again = repeats(model, [*experts.specs, *rest])
    rest = [name for name in rest if name not in again]
    if rest:
        warnings.warn(
            f"the pretrained weights lack {len(rest)} of the model's {len(_tensors(model))} tensors, {rest[0]!r} among them: they "
            "stay as they are in the model, and the merged weights do not hold them",
            MergeWarning, stacklevel=4,
        )
