"""What the names in pickles of checkpoints become instead of what they name.

A class of the allow-list in `names.py` becomes a `Stub`, which keeps arguments and state as data; storages, tensors and
parameters become descriptions; the few functions that files call are `MAKERS`, written here. Nothing is imported on a file's word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from fusionbench_lite.weights.pickles import names as pickle_names

LONGEST = 120
"""Characters of a name in a message."""
NAME, KEY = 400, 64
"""Characters of a class's name, and parts of a tuple that is a key."""

_DTYPES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "Untyped": "uint8",
}
_STORAGES = {
    f"{module}.{name}Storage": dtype for name, dtype in _DTYPES.items() for module in ("torch", "torch.cuda", "torch.storage")
}


class Refused(Exception):
    """Why a pickle is not read on, and what to do; the reader of the file makes one line of it that names the file."""

    def __init__(self, reason: str, fix: str = "fetch it from its publisher, or use another") -> None:
        super().__init__(reason)
        self.fix = fix


@dataclasses.dataclass(eq=False)
class StubClass:
    """A class (or function) of the allow-list by name; nothing of it is imported."""

    name: str


@dataclasses.dataclass(eq=False)
class Stub:
    """An object of a stub class: what it was made with, its state and, of a kind of dictionary, its items, all as data."""

    cls: StubClass
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class StorageType:
    """A storage class of torch by the name of its dtype."""

    dtype: str


@dataclasses.dataclass(eq=False)
class Storage:
    """The bytes behind tensors, which these share: their `key` in the file, and what reads their content where one is wanted."""

    dtype: str
    numel: int
    key: str
    content: bytearray | None = None
    read: Callable[[], bytearray] | None = None

    def loaded(self) -> bytearray | None:
        """Return the content, read at the first call; None where the file did not have it."""
        if self.content is None and self.read is not None:
            self.content = self.read()
        return self.content


@dataclasses.dataclass(eq=False)
class PickledTensor:
    """A tensor as the file describes it, not yet made."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(eq=False)
class Maker:
    """One of the functions below, under the name that files give it."""

    name: str
    make: Callable[..., Any]


def spelled(value: Any) -> str:
    """Return a word for a value of a pickle."""
    name = getattr(value, "name", None)
    kind = type(value).__name__.lower()
    return f"{kind} {name!r}" if isinstance(name, str) else kind


def key_of(value: Any) -> Any:
    """Return a key of a dictionary or an item of a set; raises Refused for any but plain values and what is known by identity."""
    # Of plain types alone: the hash of tuples within tuples recurses without a limit.
    flat = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(part, (str, int, float, bytes, bool, type(None), StubClass, Stub, PickledTensor)) for part in flat):
        raise Refused(f"it has a {spelled(value)} as a key")
    if len(flat) > KEY:
        raise Refused(f"it has a tuple of {len(flat)} parts as a key")
    return value


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    for given in arguments[:1]:
        pairs = list(given.items()) if isinstance(given, dict) else given
        if not isinstance(pairs, (list, tuple)):
            raise Refused(f"it makes a dictionary of a {spelled(pairs)}")
        for key, value in pairs:
            out[key_of(key)] = value
    return out


def _default_dictionary(_: Any = None, *arguments: Any) -> dict[Any, Any]:
    return _dictionary(*arguments)


def _queue(*arguments: Any) -> list[Any]:
    items = arguments[0] if arguments else ()
    if not isinstance(items, (list, tuple)):
        raise Refused(f"it makes a list of a {spelled(items)}")
    return list(items)


def _array(kind: Any = None, *_: Any) -> Stub:
    """An array of numpy, such as the state of a random generator: kept as data, its values are never needed."""
    if not isinstance(kind, StubClass):
        raise Refused(f"it calls 'numpy.core.multiarray._reconstruct' with a {spelled(kind)}")
    return Stub(kind)


def _of_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """A tensor with attributes of its own, or of a kind of its own: the tensor alone."""
    if not isinstance(function, Maker) or function.make is _of_type or not isinstance(arguments, tuple):
        raise Refused(f"it makes a tensor by a {spelled(function)}")
    return function.make(*arguments)


def _set(*arguments: Any) -> set[Any]:
    return {key_of(value) for items in arguments[:1] for value in items}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> PickledTensor:
    if not isinstance(storage, Storage):
        raise Refused(f"it makes a tensor of a {spelled(storage)}")
    numbers = [offset, *size, *stride]
    sound = all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)
    if not sound or len(size) != len(stride) or len(size) > 8:
        raise Refused("it has a tensor of impossible shape")
    elements, last = 1, offset
    for side, step in zip(size, stride, strict=True):
        elements, last = elements * side, last + max(side - 1, 0) * step
    if elements and (last >= storage.numel or elements > storage.numel):
        raise Refused(f"it has a tensor {tuple(size)} that reaches beyond its storage of {storage.numel} elements")
    return PickledTensor(storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> PickledTensor:
    if not isinstance(data, PickledTensor):
        raise Refused(f"it makes a parameter of a {spelled(data)}")
    return data


def _device(*arguments: Any) -> str:
    return ":".join(str(argument) for argument in arguments if isinstance(argument, (str, int)))


def _latin(text: Any, *_: Any) -> bytes:
    if not isinstance(text, str):
        raise Refused(f"it encodes a {spelled(text)}")
    return text.encode("latin1")


_DTYPE_NAMES = frozenset(_DTYPES.values()) | {"strided", "per_tensor_affine", "contiguous_format"}
_BY_NAME: dict[str, Callable[..., Any]] = {
    **{f"{module}.{name}": make for module in ("builtins", "__builtin__")
       for name, make in {"dict": _dictionary, "list": _queue, "set": _set}.items()},
    "collections.OrderedDict": _dictionary,
    "torch._utils._rebuild_tensor": _tensor, "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter, "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type, "collections.defaultdict": _default_dictionary,
    "collections.Counter": _dictionary, "collections.deque": _queue, "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "torch.nn.parameter.Parameter": _parameter, "torch.device": _device, "torch.Size": tuple, "_codecs.encode": _latin,
}
MAKERS = {name: Maker(name, make) for name, make in _BY_NAME.items()}


def find(module: Any, name: Any, makers: Mapping[str, Maker]) -> Maker | StorageType | StubClass:
    """Return what a module and a name stand for, without importing either. Raises Refused."""
    if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > NAME or not name.isidentifier():
        raise Refused(f"it asks for {_short(module, name)}, which is no plain name of a class")
    full = f"{module}.{name}"
    if full in makers:
        return makers[full]
    if full in _STORAGES:
        return StorageType(_STORAGES[full])
    if pickle_names.STUBS.fullmatch(full) or (module == "torch" and name in _DTYPE_NAMES):
        return StubClass(full)
    raise Refused(*pickle_names.refusal(full, _short(module, name)))


def _short(module: Any, name: Any) -> str:
    parts = [part if isinstance(part, str) else type(part).__name__ for part in (module, name)]
    text = repr(".".join(part[:LONGEST] for part in parts))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def storage_of(pid: Any) -> Storage | StubClass:
    """Return the storage (or, in files of the old format, the class) that torch's persistent id means. Raises Refused."""
    if isinstance(pid, tuple) and len(pid) >= 2 and pid[0] == "module" and isinstance(pid[1], StubClass):
        return pid[1]
    if (
        not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], StorageType)
        or not isinstance(pid[2], str) or type(pid[4]) is not int or pid[4] < 0
    ):
        raise Refused("it has a persistent id that is no storage of torch")
    if len(pid) > 5 and pid[5] is not None:
        raise Refused("it has a view of a storage, as very old versions of torch wrote them")
    return Storage(pid[1].dtype, pid[4], pid[2])


def shown(name: str) -> str:
    """Return a name of the file for a message: in one line and of bearable length."""
    text = repr(name.rstrip(".") or "at the top")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
