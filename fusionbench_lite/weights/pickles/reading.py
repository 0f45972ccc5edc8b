"""Tensors out of torch's pickled files, whole modules of packages that are gone included, without running what they say.

Three containers are read: the zip archives of torch.save, its format before 1.6, and bare pickles of modules. Names outside
the allow-list of `names.py` end the reading with an error that names them; nothing of the file has run then.
"""

from __future__ import annotations

import io
import mmap
import re
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import InputError
from fusionbench_lite.lazy import torch
from fusionbench_lite.weights.pickles.machine import load
from fusionbench_lite.weights.pickles.names import SCRIPT
from fusionbench_lite.weights.pickles.objects import Refused, Storage, shown, storage_of
from fusionbench_lite.weights.pickles.trees import PickledModule, collect

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What files of torch's old format begin with."""


def read_pickled(path: Path) -> PickledModule:
    """Return the tensors of a pickled module or state dict under the names of `state_dict()`.

    Raises InputError naming the file, and the class where one is refused; nothing of the file runs in any case.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:4] == b"PK\x03\x04":
                return _from_zip(path)
            return collect(_from_stream(content), len(content))
    except Refused as error:
        raise InputError(f"{path}: {error}; nothing of the file was run: {error.fix}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"cannot read {path}: {reason}; fetch it again") from error


def _from_zip(path: Path) -> PickledModule:
    try:
        with zipfile.ZipFile(path) as archive:
            nbytes = path.stat().st_size
            return collect(_from_archive(archive, nbytes), nbytes)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, EOFError, struct.error) as error:
        raise Refused(f"it is a damaged archive ({error})") from error


def _from_archive(archive: zipfile.ZipFile, nbytes: int) -> Any:
    """Return the object of an archive. Its entries are stored as they are, so that none can be larger than the file."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(re.fullmatch(r"[^/]+/(code/.*|constants\.pkl)", name) for name in entries):
        raise Refused("it is a TorchScript program, not a checkpoint", SCRIPT)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()) or sum(
        entry.file_size for entry in archive.infolist()
    ) > nbytes or len(entries) != len(archive.infolist()):
        raise Refused("it is no archive of torch.save (compressed, overlapping or repeated entries)")
    tops = [name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(tops) != 1:
        raise Refused(f"it is an archive with {len(tops)} data.pkl instead of one")
    top = tops[0]
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
                raise Refused(f"it lacks its storage {shown(storage.key)}")
            # Read where a tensor of it is wanted: optimizers are not. Checks the sum that the archive keeps.
            storage.read = lambda: bytearray(archive.read(f"{top}data/{storage.key}"))
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
            raise Refused(f"it is truncated or damaged at its storage {shown(key)}")
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
