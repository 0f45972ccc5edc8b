"""Where the constants of an adaptation live: with the merged model, in the processor's memory, or in files.

Task vectors and singular components are constants of T models' size, read once or twice a step, tensor by tensor. Parts
ask `put` for the place of theirs as they are made, one tensor after another, so that no more than one tensor of every
expert is on its way at a time.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import dataclasses
import functools
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fusionbench_lite.errors import InputError, did_you_mean

PLACES = ("device", "cpu", "disk")
"""Where the experts are read to, the processor's memory, files that are mapped into memory."""

SMALLEST = 1 << 16
"""Bytes below which a tensor is not worth a file: biases and norms stay in the processor's memory."""

_DONT_NEED = 4
"""madvise's MADV_DONTNEED on Linux."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """A place, and for "disk" the folder of its files."""

    place: str = "device"
    folder: Path | None = None


_DEVICE = Placement()
_present: contextvars.ContextVar[Placement] = contextvars.ContextVar("placement", default=_DEVICE)


@contextlib.contextmanager
def placing(place: str, folder: Path | None = None) -> Iterator[None]:
    """Let the parts that the block makes keep their constants at a place.

    `folder` is where "disk" has its files, by default the system's folder for temporary files, which may itself be in
    memory. Nothing is left there, however the process ends. Raises InputError for an unknown place and for a folder
    that cannot be made.
    """
    if place not in PLACES:
        raise InputError(f"unknown place {place!r}: {did_you_mean(place, PLACES)}")
    if place == "disk" and folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror}; choose another folder for scratch files") from error
    token = _present.set(Placement(place, folder))
    try:
        yield
    finally:
        _present.reset(token)


def place() -> str:
    """Return the place that parts are given now."""
    return _present.get().place


def put(tensor: Tensor) -> Tensor:
    """Return the tensor at the place of the moment: itself where it is there already, else a copy.

    Raises InputError where there is no room for a file.
    """
    now = _present.get()
    if now.place == "device":
        return tensor
    if now.place == "cpu" or tensor.nbytes < SMALLEST:
        return tensor.cpu()
    if is_mapped(tensor):
        return tensor
    target = _mapped(tensor.shape, tensor.dtype, now.folder or Path(tempfile.gettempdir()))
    target.copy_(tensor)
    forget(target)
    return target


def is_mapped(tensor: Tensor) -> bool:
    """Say whether the tensor is in a file that `put` made."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().filename is not None


def forget(*tensors: Tensor) -> None:
    """Give back the memory of mapped tensors, which the next access reads again; other tensors are left alone."""
    for tensor in tensors:
        if is_mapped(tensor):
            storage = tensor.untyped_storage()
            _advise(storage.data_ptr(), storage.nbytes())


def _mapped(shape: torch.Size, dtype: torch.dtype, folder: Path) -> Tensor:
    """Return a new tensor in a file without a name: its space is free again when the tensor is, or the process."""
    nbytes = math.prod(shape) * dtype.itemsize
    try:
        # The file has no name from the start where the system can do that: a killed process leaves nothing behind.
        with tempfile.TemporaryFile(prefix="fusionbench_lite-", dir=folder) as file:
            path = f"/proc/self/fd/{file.fileno()}"
            if not Path(path).exists():
                return _mapped_by_name(shape, dtype, nbytes, folder)
            os.posix_fallocate(file.fileno(), 0, nbytes)  # a full disk is an error now and no signal later
            storage = torch.UntypedStorage.from_file(path, shared=True, nbytes=nbytes)
    except OSError as error:
        raise _no_room(folder, nbytes, error) from error
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload, no-any-return]


def _mapped_by_name(shape: torch.Size, dtype: torch.dtype, nbytes: int, folder: Path) -> Tensor:
    """As `_mapped`, where open files have no path: the name is there until the file is mapped."""
    with tempfile.NamedTemporaryFile(prefix="fusionbench_lite-", dir=folder) as file:
        file.truncate(nbytes)
        storage = torch.UntypedStorage.from_file(file.name, shared=True, nbytes=nbytes)
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload, no-any-return]


def _no_room(folder: Path, nbytes: int, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(f"cannot keep {nbytes:,} bytes in {folder}: {reason}; free some space or choose another folder or place")


def _advise(address: int, nbytes: int) -> None:
    madvise = _madvise()
    if madvise is not None:
        madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_int(_DONT_NEED))


@functools.cache
def _madvise() -> ctypes._NamedFuncPointer | None:
    """Return the system's function, None where it is not Linux's: others mean something else by the number."""
    if sys.platform != "linux":
        return None
    function: ctypes._NamedFuncPointer | None = getattr(ctypes.CDLL(None), "madvise", None)
    return function
