"""Let torchvision load beside a torch build that its compiled library does not fit.

torchvision's wheel on the package index is built for CUDA. Next to a CPU-only torch its native library cannot be loaded,
torchvision then carries on without it, and the first thing its Python code does is to register fake kernels for operators
that only the native library defines: ``import torchvision`` ends with "operator torchvision::nms does not exist". Because
torchmetrics imports torchvision, ``import lightning`` ends the same way, and so does ``import open_clip``.

Importing this module first defines the two operator schemas that are looked up unconditionally (``nms`` and ``qnms``), without
kernels: nothing here runs non-maximum suppression, so a kernel is not needed. Where torchvision's own library loads, this module
defines nothing, because a second definition of the same schema is an error. The ``torch.library.Library`` object is kept in
a module variable, because its definitions vanish when it is collected.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import torch

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _load_native_library() -> bool:
    """Load torchvision's own operator library the way torchvision does; True when that worked."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    folder = Path(spec.origin).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        for library in sorted(folder.glob(f"_C*{suffix}")):
            try:
                torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            except OSError:  # built for another torch (or for CUDA libraries that are not here)
                continue
            return True
    return False


def _is_defined(operator: str) -> bool:
    return hasattr(torch.ops.torchvision, operator)


def define_missing_operators() -> torch.library.Library | None:
    """Define the schemas of ``torchvision::nms`` and ``::qnms`` that are missing; None when none is."""
    if all(_is_defined(name) for name in _OPERATORS) or _load_native_library():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        if not _is_defined(name):
            library.define(f"{name}{_SIGNATURE}")  # type: ignore[no-untyped-call]
    return library


LIBRARY = define_missing_operators()
