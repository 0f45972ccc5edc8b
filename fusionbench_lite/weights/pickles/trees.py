"""The tensors of what a pickle holds: of a state dict, of a module, and of a training checkpoint with either somewhere inside.

Dictionaries, lists and modules are walked, names joined by dots: an entry `state_dict` is a prefix of the names in it. Modules
give what their `state_dict()` would, from `_modules`, `_parameters` and the persistent part of `_buffers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.pickles.objects import PickledTensor, Refused, Stub, shown

if TYPE_CHECKING:
    from torch import Tensor

MODULES, DEPTH = 100_000, 100
"""Modules, containers and tensors of one file, and these within one another."""
NAME = 4_000
"""Characters of the name of one of them."""
_MODULE = ("_parameters", "_buffers", "_modules")


@dataclasses.dataclass(frozen=True)
class PickledModule:
    """What a pickled file holds.

    `kind` is "module", "state_dict" or, where no tensor lies at the top, "checkpoint"; `class_name` the class of the file's one
    module as the file names it, "" where there is none; `attributes` the plain values (numbers, text, None) at the top and in
    that module, such as `normalize` of a head.
    """

    kind: str
    class_name: str
    tensors: dict[str, Tensor]
    attributes: dict[str, Any]


def collect(root: Any, nbytes: int) -> PickledModule:
    """Return the tensors of the unpickled object; `nbytes` is the size of its file. Raises Refused."""
    tensors: dict[str, PickledTensor] = {}
    modules: list[Stub] = []
    for name, value in _walk(root, modules):
        if name in tensors:
            raise Refused(f"it has two tensors under the name {shown(name)}")
        tensors[name] = value
    if not tensors or isinstance(root, PickledTensor):
        raise _nothing(root)
    attributes = _plain(root) if isinstance(root, dict) else {}
    if len(modules) == 1:
        attributes |= _plain(modules[0].state)
    items = root.items if isinstance(root, Stub) else root
    flat = isinstance(items, dict) and any(isinstance(value, PickledTensor) for value in items.values())
    kind = "module" if modules == [root] else "state_dict" if flat else "checkpoint"
    return PickledModule(kind, modules[0].cls.name if len(modules) == 1 else "", _made(tensors, nbytes), attributes)


def _nothing(root: Any) -> Refused:
    """Return why an object without named tensors is of no use."""
    neither, fix = "neither a module nor a state dict", "give a file that torch.save(model.state_dict(), FILE) wrote"
    if isinstance(root, PickledTensor):
        alone = f"it holds one tensor of shape {root.size} without a name, {neither}"
        return Refused(alone, "save a head as torch.save({'weight': tensor}, FILE), and a model as its state_dict()")
    if isinstance(root, Stub):
        return Refused(f"it holds no tensors, but an object of the class {shown(root.cls.name)}", fix)
    if not isinstance(root, dict):
        what = "nothing (None)" if root is None else f"a {type(root).__name__} without tensors"
        return Refused(f"it holds {what}, {neither}", fix)
    if _is_optimizer(root):
        return Refused("it holds no tensors of a model, but the state of an optimizer", fix)
    entries = ", ".join(shown(_key(key, place)) for place, key in enumerate(list(root)[:4])) + (", ..." if len(root) > 4 else "")
    return Refused(f"it holds no tensors ({f'entries {entries}' if root else 'an empty dictionary'})", fix)


def _plain(state: Any) -> dict[str, Any]:
    return {
        key: value for key, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(key, str) and not key.startswith("_") and isinstance(value, (str, int, float, bool, type(None)))
    }


def _is_module(value: Stub) -> bool:
    return isinstance(value.state, Mapping) and all(part in value.state for part in _MODULE)


def _is_optimizer(value: Mapping[Any, Any]) -> bool:
    return isinstance(value.get("state"), Mapping) and isinstance(value.get("param_groups"), list)


def _walk(root: Any, modules: list[Stub]) -> Iterator[tuple[str, PickledTensor]]:
    """Yield tensors with their names, in the order of `state_dict()`; the outermost modules are added to `modules`.

    The state of optimizers is passed over.
    """
    waiting: list[tuple[str, Any, int, bool]] = [("", root, 0, False)]
    seen = 0
    while waiting:
        name, value, depth, inside = waiting.pop()
        if isinstance(value, PickledTensor):
            yield name, value
            continue
        if isinstance(value, Stub) and (inside or _is_module(value) or (value is root and not value.items)):
            if not inside:
                modules.append(value)
            children, inside = _children_of_module(name, value), True
        elif isinstance(value, Stub):
            children = list(value.items.items())
        elif isinstance(value, dict):
            children = [] if _is_optimizer(value) else list(value.items())
        elif isinstance(value, (list, tuple)) and not inside:
            children = list(enumerate(value))
        else:
            children = []
        children = [each for each in children if isinstance(each[1], (PickledTensor, Stub, dict, list, tuple))]
        seen += 1 + len(children)
        if seen > MODULES or depth > DEPTH:
            raise Refused(f"it has more than {MODULES:,} modules and tensors, or {DEPTH} within one another: it contains itself")
        if len(name) > NAME:
            raise Refused(f"it has a name of {len(name):,} characters, {shown(name)}")
        before = f"{name}." if name else ""
        named = [(f"{before}{_key(key, place)}", child) for place, (key, child) in enumerate(children)]
        waiting.extend((whole, child, depth + 1, inside) for whole, child in reversed(named))


def _key(key: Any, place: int) -> str:
    """Return a key as part of a name: plain values as they are written, of other objects only what they are and their place."""
    parts = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, (str, int, float, bytes, bool, type(None))) for part in parts):
        return f"<{type(key).__name__} {place}>"
    return str(key)


def _children_of_module(name: str, module: Any) -> list[tuple[Any, Any]]:
    """Return parameters, persistent buffers and modules of a module. Raises Refused where it is none."""
    state = module.state if isinstance(module, Stub) else None
    parts = {part: state.get(part, {}) for part in _MODULE} if isinstance(state, Mapping) else {}
    if not parts or not all(isinstance(part, Mapping) for part in parts.values()):
        raise Refused(f"its module {shown(name)} has no state of a torch module")
    passing = state.get("_non_persistent_buffers_set") if isinstance(state, Mapping) else None
    skipped = passing if isinstance(passing, (set, frozenset)) else ()
    out: list[tuple[Any, Any]] = []
    for part in _MODULE:
        for key, value in parts[part].items():
            if value is None or (part == "_buffers" and key in skipped):
                continue
            whole = f"{name}.{_key(key, len(out))}" if name else _key(key, len(out))
            if part == "_modules" and not isinstance(value, Stub):
                raise Refused(f"its module {shown(whole)} has no state of a torch module")
            if part != "_modules" and not isinstance(value, PickledTensor):
                raise Refused(f"its {shown(whole)} is a {type(value).__name__}, not a tensor")
            out.append((key, value))
    return out


def _made(pickled_by_name: Mapping[str, PickledTensor], nbytes: int) -> dict[str, Tensor]:
    bases: dict[int, Tensor] = {}
    total, out = 0, {}
    for name, pickled in pickled_by_name.items():
        storage = pickled.storage
        dtype, content = getattr(torch, storage.dtype), storage.loaded()
        if content is None or len(content) != storage.numel * dtype.itemsize:
            raise Refused(f"it is truncated or damaged at {shown(name)}")
        elements = 1
        for side in pickled.size:
            elements *= side
        total += elements * dtype.itemsize
        if total > 2 * nbytes:
            raise Refused(f"its tensors take more than twice its {nbytes:,} bytes: they repeat one another")
        if id(storage) not in bases:
            bases[id(storage)] = torch.frombuffer(content, dtype=dtype) if content else torch.zeros(0, dtype=dtype)
        out[name] = torch.as_strided(bases[id(storage)], pickled.size, pickled.stride, pickled.offset)
    return out
