"""A reader of pickles that calls nothing: tensors, containers and inert stubs of named classes come out, or Refused.

`pickletools` takes the stream apart, and this module interprets the operations itself. It imports no module on a file's word,
looks up no attribute of an object of the file and calls none: only the makers of `pickle_objects` run.
"""

from __future__ import annotations

import os
import pickletools
from collections.abc import Callable
from typing import Any, Protocol, cast

from fusionbench_lite.weights.pickles.objects import MAKERS, Maker, Refused, Storage, Stub, StubClass, find, key_of, spelled

OPERATIONS = 20_000_000
"""Operations of one file; a pickled ViT-L/14 has some 60,000."""
HANDED, HANDED_PER_BYTE = 1_000_000, 4
"""Items, letters and bytes that makers are handed, and those for each byte of the file: what is named again and again grows it."""
_MARK = object()
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RecursionError, EOFError)


class Stream(Protocol):
    """What is read from: bytes in memory or a mapped file, whose `read` never allocates ahead of what there is."""

    def read(self, size: int = ..., /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...
    def seek(self, place: int, whence: int = ..., /) -> Any: ...


def load(stream: Stream, persistent: Callable[[Any], Any], from_bytes: Callable[[Any], Storage]) -> Any:
    """Return the object of the next pickle in the stream. Raises Refused.

    `persistent` answers persistent ids, `from_bytes` reads storages that were pickled inside the pickle.
    """
    machine = _Machine(persistent, from_bytes, HANDED + HANDED_PER_BYTE * _length(stream))
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(cast("Any", stream))):
            if number > OPERATIONS:
                raise Refused(f"it has more than {OPERATIONS:,} operations")
            machine.step(operation.name, argument)
        return machine.pop()
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [""])[0]
        raise Refused(f"its pickle is damaged ({type(error).__name__}: {reason})") from error


def _length(stream: Stream) -> int:
    place = stream.tell()
    stream.seek(0, os.SEEK_END)
    length = stream.tell()
    stream.seek(place)
    return length


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, tuple, list, dict, set, frozenset)) else 1


class _Machine:
    """The stack and the memo of one pickle, and how much makers may still be handed."""

    def __init__(self, persistent: Callable[[Any], Any], from_bytes: Callable[[Any], Storage], to_hand: int) -> None:
        self.to_hand = to_hand
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.persistent = persistent
        name = "torch.storage._load_from_bytes"
        self.makers = {**MAKERS, name: Maker(name, from_bytes)}

    def step(self, name: str, argument: Any) -> None:
        """Do one operation; what is not among those of published files is refused."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            self.stack.append(argument)
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name not in _NOTHING:
            raise Refused(f"it uses the pickle operation {name}, which published checkpoints do not")

    def pop(self) -> Any:
        """Take the top of the stack, which must not be a mark."""
        value = self.stack.pop()
        if value is _MARK:
            raise Refused("its pickle is damaged (a mark where a value belongs)")
        return value

    def to_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def top(self, kind: type) -> Any:
        """Look at the top of the stack, which must be of this kind."""
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise Refused(f"it fills a {spelled(value)} like a {kind.__name__}")
        return value

    def call(self, function: Any, arguments: Any) -> Any:
        """Make an object: a stub of a stub class, or the result of a maker. Nothing else can be called."""
        if not isinstance(arguments, tuple):
            raise Refused(f"it calls {spelled(function)} with a {spelled(arguments)}")
        if isinstance(function, StubClass):
            return Stub(function, arguments)
        if isinstance(function, Maker):
            inner = [value for given in arguments if isinstance(given, tuple) for value in given]
            self.to_hand -= sum(map(_size, arguments)) + sum(map(_size, inner))
            if self.to_hand < 0:
                raise Refused("it makes more of its values than it holds: they repeat one another")
            return function.make(*arguments)
        raise Refused(f"it calls a {spelled(function)}")


def _find(machine: _Machine, module: Any, name: Any) -> Any:
    return find(module, name, machine.makers)


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(_find(machine, module, name))


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.stack.append(_find(machine, module, name))


def _inst(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.stack.append(machine.call(_find(machine, module, name), tuple(machine.to_mark())))


def _obj(machine: _Machine, _: Any) -> None:
    function, *arguments = machine.to_mark()
    machine.stack.append(machine.call(function, tuple(arguments)))


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.stack.append(machine.call(function, arguments))


def _newobj_ex(machine: _Machine, _: Any) -> None:
    machine.pop()  # keywords: a stub has no use for them, and no maker takes any
    _reduce(machine, None)


def _build(machine: _Machine, _: Any) -> None:
    """Stubs keep their state as data, dictionaries need none (torch's carry versions), anything else has none."""
    state, target = machine.pop(), machine.stack[-1]
    if isinstance(target, Stub):
        target.state = state
    elif not isinstance(target, dict):
        raise Refused(f"it sets the state of a {spelled(target)}")


def _persistent_id(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.persistent(machine.pop()))


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def handler(machine: _Machine, _: Any) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(items[::-1]))

    return handler


def _tuple(machine: _Machine, _: Any) -> None:
    machine.stack.append(tuple(machine.to_mark()))


def _list(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.to_mark())


def _append(machine: _Machine, _: Any) -> None:
    item = machine.pop()
    machine.top(list).append(item)


def _appends(machine: _Machine, _: Any) -> None:
    items = machine.to_mark()
    machine.top(list).extend(items)


def _dict(machine: _Machine, _: Any) -> None:
    items = machine.to_mark()
    machine.stack.append({})
    _fill(machine, items)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _fill(machine, [key, value])


def _set_items(machine: _Machine, _: Any) -> None:
    _fill(machine, machine.to_mark())


def _fill(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1].items if isinstance(machine.stack[-1], Stub) else machine.top(dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[key_of(key)] = value


def _add_items(machine: _Machine, _: Any) -> None:
    items = machine.to_mark()
    machine.top(set).update(map(key_of, items))


def _frozen_set(machine: _Machine, _: Any) -> None:
    machine.stack.append(frozenset(map(key_of, machine.to_mark())))


def _pop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.to_mark()


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.pop()
    machine.stack.append(machine.memo[index])


def _memoize(machine: _Machine, _: Any) -> None:
    _put(machine, len(machine.memo))


def _get(machine: _Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list,
    "EMPTY_DICT": dict, "EMPTY_SET": set, "MARK": lambda: _MARK,
}
_VALUES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
})
_NOTHING = frozenset({"PROTO", "FRAME", "STOP"})
_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": _global, "STACK_GLOBAL": _stack_global, "INST": _inst, "OBJ": _obj, "REDUCE": _reduce, "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex, "BUILD": _build, "BINPERSID": _persistent_id, "TUPLE1": _tuple_of(1), "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3), "TUPLE": _tuple, "LIST": _list, "APPEND": _append, "APPENDS": _appends, "DICT": _dict,
    "SETITEM": _set_item, "SETITEMS": _set_items, "ADDITEMS": _add_items, "FROZENSET": _frozen_set, "POP": _pop,
    "POP_MARK": _pop_mark, "PUT": _put, "BINPUT": _put, "LONG_BINPUT": _put, "MEMOIZE": _memoize, "GET": _get, "BINGET": _get,
    "LONG_BINGET": _get,
}
