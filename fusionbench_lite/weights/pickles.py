"""Tensors out of torch's pickled files, whole modules of packages that are gone included, without running what they say.

Three containers are read: the zip archives of torch.save, its format before 1.6, and bare pickles of modules. Names outside
the allow-list of `pickle_objects` end the reading with an error that names them; nothing of the file has run then. Modules
are walked by `_modules`, `_parameters` and the persistent part of `_buffers`.
"""

from __future__ import annotations

import dataclasses
import io
import mmap
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import InputError
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.pickle_machine import load
from fusionbench_lite.weights.pickle_objects import LONGEST, PickledTensor, Refused, Storage, Stub, storage_of

if TYPE_CHECKING:
    from torch import Tensor

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What files of torch's old format begin with."""
MODULES, DEPTH = 100_000, 100
"""Modules and tensors of one file, and modules within one another."""


@dataclasses.dataclass(frozen=True)
class PickledModule:
    """What a pickled file holds.

    `kind` is "module" or "state_dict"; `class_name` the module's class as the file names it, "" for a state dict; `attributes`
    the plain values (numbers, text, None) that lie at the top beside the tensors, such as `normalize` of a head.
    """

    kind: str
    class_name: str
    tensors: dict[str, Tensor]
    attributes: dict[str, Any]


def read_pickled(path: Path) -> PickledModule:
    """Return the tensors of a pickled module or state dict under the names of `state_dict()`.

    Raises InputError naming the file, and the class where one is refused; nothing of the file runs in any case.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            root, nbytes = (_from_zip(path) if content[:4] == b"PK\x03\x04" else _from_stream(content)), len(content)
            return _collect(root, nbytes)
    except Refused as error:
        raise InputError(f"{path}: {error}; nothing of the file was run: fetch it from its publisher, or use another") from error
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"cannot read {path}: {reason}; fetch it again") from error


def _from_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return _from_archive(archive, path.stat().st_size)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, EOFError, struct.error) as error:
        raise Refused(f"it is a damaged archive ({error})") from error


def _from_archive(archive: zipfile.ZipFile, nbytes: int) -> Any:
    """Return the object of an archive. Its entries are stored as they are, so that none can be larger than the file."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()) or sum(
        entry.file_size for entry in archive.infolist()
    ) > nbytes or len(entries) != len(archive.infolist()):
        raise Refused("it is no archive of torch.save (compressed, overlapping or repeated entries)")
    tops = [name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(tops) != 1:
        raise Refused(f"it is an archive with {len(tops)} data.pkl instead of one")
    top = tops[0]
    if any(name.startswith(f"{top}code/") or name == f"{top}constants.pkl" for name in entries):
        raise Refused("it is a TorchScript program, not a checkpoint")
    order = archive.read(f"{top}byteorder").decode("ascii", "replace") if f"{top}byteorder" in entries else "little"
    if order != sys.byteorder:
        raise Refused(f"its numbers are {order}-endian, this machine is {sys.byteorder}-endian")
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Any:
        storage = storage_of(pid)
        if not isinstance(storage, Storage):
            return storage
        if storage.key not in storages:
            if f"{top}data/{storage.key}" not in entries:
                raise Refused(f"it lacks its storage {_shown(storage.key)}")
            storage.content = bytearray(archive.read(f"{top}data/{storage.key}"))  # checks the sum that the archive keeps
            storages[storage.key] = storage
        return storages[storage.key]

    return load(io.BytesIO(archive.read(f"{top}data.pkl")), persistent, _storage_in_pickle)


def _from_stream(content: Any) -> Any:
    """Return the object of a file in torch's old format, or of a bare pickle."""
    first = load(content, _no_persistent, _storage_in_pickle)
    return _old_format(content) if first == MAGIC and type(first) is int else first


def _old_format(stream: Any) -> Any:
    """Return the object after the magic number: version, system, object, storage keys, then the storages' bytes."""
    version = load(stream, _no_persistent, _no_storage)
    system = load(stream, _no_persistent, _no_storage)
    if version != PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not (sys.byteorder == "little"):
        raise Refused("it is of another version of torch's old format or of another machine")
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Any:
        storage = storage_of(pid)
        return storages.setdefault(storage.key, storage) if isinstance(storage, Storage) else storage

    root = load(stream, persistent, _storage_in_pickle)
    keys = load(stream, _no_persistent, _no_storage)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise Refused("its list of storages does not fit its tensors")
    for key in keys:
        storage = storages[key]
        length = storage.numel * getattr(torch, storage.dtype).itemsize
        head = stream.read(8)
        if len(head) != 8 or struct.unpack("<q", head)[0] != storage.numel:
            raise Refused(f"it is truncated or damaged at its storage {_shown(key)}")
        storage.content = bytearray(stream.read(length))
    return root


def _storage_in_pickle(content: Any) -> Storage:
    """Return a storage that was pickled by itself, in torch's old format, inside a bare pickle."""
    if not isinstance(content, bytes):
        raise Refused(f"it reads a storage from a {type(content).__name__}")
    stream = io.BytesIO(content)
    if load(stream, _no_persistent, _no_storage) != MAGIC:
        raise Refused("it has a storage in a format that torch did not write")
    storage = _old_format(stream)
    if not isinstance(storage, Storage):
        raise Refused("it has something else where a storage belongs")
    return storage


def _no_persistent(pid: Any) -> Any:
    raise Refused("it has a persistent id outside torch's formats")


def _no_storage(content: Any) -> Storage:
    raise Refused("it has storages within storages")


def _collect(root: Any, nbytes: int) -> PickledModule:
    """Return the tensors of the unpickled object; `nbytes` is the size of its file."""
    if isinstance(root, Stub):
        tensors, attributes = dict(_walk(root)), _plain(root.state if isinstance(root.state, Mapping) else {})
        kind, name = "module", root.cls.name
    elif isinstance(root, dict):
        tensors = {str(key): value for key, value in root.items() if isinstance(value, PickledTensor)}
        attributes, kind, name = _plain(root), "state_dict", ""
        strange = [key for key, value in root.items() if str(key) not in tensors and key not in attributes]
        if strange:
            raise Refused(f"it is no state dict: its entry {_shown(str(strange[0]))} is neither a tensor nor a plain value")
    else:
        raise Refused(f"it holds a {type(root).__name__}, neither a module nor a state dict")
    if not tensors:
        raise Refused("it holds no tensors")
    return PickledModule(kind, name, _made(tensors, nbytes), attributes)


def _plain(state: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in state.items()
        if isinstance(key, str) and not key.startswith("_") and isinstance(value, (str, int, float, bool, type(None)))
    }


def _walk(root: Stub) -> Iterator[tuple[str, PickledTensor]]:
    """Yield the tensors of a module in the order of `state_dict()`, children after its own."""
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        if not isinstance(module, Stub) or not isinstance(module.state, Mapping):
            raise Refused(f"its module {_shown(prefix)} has no state of a torch module")
        state = module.state
        parts = {part: state.get(part, {}) for part in ("_parameters", "_buffers", "_modules")}
        if not all(isinstance(part, Mapping) for part in parts.values()):
            raise Refused(f"its module {_shown(prefix)} has no state of a torch module")
        seen += 1 + sum(map(len, parts.values()))
        if seen > MODULES or depth > DEPTH:
            raise Refused(f"it has more than {MODULES:,} modules and tensors, or modules {DEPTH} deep: it contains itself")
        passing = state.get("_non_persistent_buffers_set")
        skipped = passing if isinstance(passing, (set, frozenset)) else ()
        for part in ("_parameters", "_buffers"):
            for name, value in parts[part].items():
                if value is not None and not (part == "_buffers" and name in skipped):
                    if not isinstance(value, PickledTensor):
                        raise Refused(f"its {_shown(f'{prefix}{name}')} is a {type(value).__name__}, not a tensor")
                    yield f"{prefix}{name}", value
        children = [(f"{prefix}{name}.", child, depth + 1) for name, child in parts["_modules"].items() if child is not None]
        waiting.extend(reversed(children))


def _shown(name: str) -> str:
    """Return a name of the file for a message: in one line and of bearable length."""
    text = repr(name.rstrip(".") or "at the top")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _made(pickled_by_name: Mapping[str, PickledTensor], nbytes: int) -> dict[str, Tensor]:
    bases: dict[int, Tensor] = {}
    total, out = 0, {}
    for name, pickled in pickled_by_name.items():
        storage = pickled.storage
        dtype = getattr(torch, storage.dtype)
        if storage.content is None or len(storage.content) != storage.numel * dtype.itemsize:
            raise Refused(f"it is truncated or damaged at {_shown(name)}")
        elements = 1
        for side in pickled.size:
            elements *= side
        total += elements * dtype.itemsize
        if total > 2 * nbytes:
            raise Refused(f"its tensors take more than twice its {nbytes:,} bytes: they repeat one another")
        if id(storage) not in bases:
            bases[id(storage)] = torch.frombuffer(storage.content, dtype=dtype) if storage.content else torch.zeros(0, dtype=dtype)
        out[name] = torch.as_strided(bases[id(storage)], pickled.size, pickled.stride, pickled.offset)
    return out
