"""What torch puts around modules: compilation, data parallelism and checkpoints, which change names and not what is computed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from torch import nn

from fusionbench_lite.errors import MergeError

PLAIN = {"OptimizedModule": "_orig_mod"}
"""Class of a wrapper that runs with other weights in place, and the name of the module inside."""

HINDERING = {"DataParallel": "module", "DistributedDataParallel": "module", "AveragedModel": "module"}
"""The same of wrappers that have to come off: a stateless call refuses them, or they replace modules on other devices."""

RECOMPUTING = {"CheckpointWrapper": "_checkpoint_wrapped_module", "OffloadWrapper": "_checkpoint_wrapped_module"}
"""The same of wrappers that run a module again in the backward pass, when the weights of the call are gone, and hide their name."""

_ALL = {**PLAIN, **HINDERING, **RECOMPUTING}


class Holder(nn.Module):
    """A module in place of a wrapper, with the wrapper's name for what is inside."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, inner)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Return what the module inside returns."""
        return self.get_submodule(self.name)(*arguments, **named)


def forms(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model under each of the names that its tensors can go by: its own, and those without wrappers.

    The forms share the model's tensors and compute what it computes; the model itself stays as it is. Compiled modules run
    uncompiled where their wrapper is off.
    """
    kinds = {kind for module in model.modules() if (kind := _kind(module)) is not None}
    if not kinds & (HINDERING.keys() | RECOMPUTING.keys()):
        yield model
    elif kinds & HINDERING.keys():
        yield _without(model, {name for name in kinds if name not in PLAIN}, keep=True)
    if kinds:
        yield _without(model, kinds, keep=False)


def _kind(module: nn.Module) -> str | None:
    names = (kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch."))
    return next((name for name in names if name in _ALL and _ALL[name] in module._modules), None)


def _without(model: nn.Module, kinds: set[str], *, keep: bool) -> nn.Module:
    """Return a copy of the model without wrappers of these kinds; what holds no wrapper is shared. `keep` keeps names."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    wrappers = [(module, kind) for module in model.modules() if (kind := _kind(module)) in kinds]
    try:
        for wrapper, kind in reversed(wrappers):  # those inside others first
            assert kind is not None
            inner = wrapper.get_submodule(_ALL[kind])
            if not any(_kind(module) in kinds for module in inner.modules()):
                memo.update({id(module): module for module in inner.modules()})
            bare = copy.deepcopy(inner, memo)
            memo[id(wrapper)] = Holder(_ALL[kind], bare) if keep and kind in HINDERING else bare
        return copy.deepcopy(model, memo)
    except Exception as error:
        kind = wrappers[0][1]
        assert kind is not None
        raise MergeError(
            f"a {kind} in {type(model).__name__} cannot be taken off, {type(error).__name__}: {_line(error)}; "
            f"give the model without it: what it wraps is its {_ALL[kind]!r}"
        ) from error


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
