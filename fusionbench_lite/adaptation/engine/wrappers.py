"""What torch puts around modules: compilation, data parallelism and checkpoints, which change names and not what is computed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from torch import nn

from fusionbench_lite.adaptation.engine.foreign import first_line
from fusionbench_lite.errors import MergeError

NAMED = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module", "AveragedModel": "module"}
"""Class of a wrapper, and its name for the module inside, which is in the names of tensors."""

NAMELESS = {"CheckpointWrapper": "_checkpoint_wrapped_module", "OffloadWrapper": "_checkpoint_wrapped_module"}
"""The same of wrappers that leave it out of the names. They run modules again in the backward pass, without merged weights."""

_ALL = {**NAMED, **NAMELESS}


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
    """Yield the model without its wrappers, under each of the names that its tensors can go by: with the wrappers' and without.

    The forms share the model's tensors and compute what it computes; the model itself stays as it is. Compiled modules run
    uncompiled: what runs with weights of the moment, and with hooks, is compiled anew time and again, or without the hooks.
    """
    if _is_plain(model):
        yield model
        return
    yield _without(model, keep=True)
    yield _without(model, keep=False)


def _is_plain(model: nn.Module) -> bool:
    """Say whether no module is wrapped, or compiled in place, which a copy of it is not."""
    return not any(_kind(module) or getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())


def _kind(module: nn.Module) -> str | None:
    names = (kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch."))
    return next((name for name in names if name in _ALL and _ALL[name] in module._modules), None)


def _without(model: nn.Module, *, keep: bool) -> nn.Module:
    """Return a copy of the model without wrappers; what holds no wrapper is shared. `keep` keeps names."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    wrappers = [(module, kind) for module in model.modules() if (kind := _kind(module)) is not None]
    try:
        for wrapper, kind in reversed(wrappers):  # those inside others first
            inner = wrapper.get_submodule(_ALL[kind])
            if _is_plain(inner):
                memo.update({id(module): module for module in inner.modules()})
            bare = copy.deepcopy(inner, memo)
            memo[id(wrapper)] = Holder(_ALL[kind], bare) if keep and kind in NAMED else bare
        return copy.deepcopy(model, memo)
    except Exception as error:
        inside = "model" if not wrappers else f"model that is the {_ALL[wrappers[0][1]]!r} of its {wrappers[0][1]}"
        raise MergeError(
            f"{type(model).__name__} cannot be copied without what wraps its modules, {first_line(error)}; give the {inside}, "
            "without wrappers and not compiled"
        ) from error
