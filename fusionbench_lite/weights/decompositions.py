"""Decompositions kept on disk by the content of the matrix, so that methods and runs share them.

The eigenvectors of the shorter side's Gram matrix are kept, as many as anyone has asked for, and all eigenvalues: one
product with the matrix, which the caller has, gives the other side. Full SVDs are kept whole where they were needed.
An entry is checked against its own checksum and what it should hold; one that fails is computed again and replaced.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.errors import InputError
from fusionbench_lite.lazy import torch
from fusionbench_lite.paths import atomic_file
from fusionbench_lite.weights.readers import checksum, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

SMALLEST = 256
"""Matrices whose shorter side is below this are faster decomposed than read."""

_folder: contextvars.ContextVar[Path | None] = contextvars.ContextVar("decompositions", default=None)


@contextlib.contextmanager
def cached_in(folder: Path | None) -> Iterator[None]:
    """Keep the decompositions of the block in this folder, and take those that are there; None keeps none."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def cached(
    matrix: Tensor, kind: str, shapes: dict[str, tuple[int, ...]], compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the tensors of `compute()`, from the folder where they are there.

    `kind` names the decomposition. `shapes` are those of the result; tensors of two dimensions have a column per
    component, and an entry may have more of them.
    """
    folder = _folder.get()
    if folder is None or min(matrix.shape) < SMALLEST or matrix.device.type != "cpu":
        return compute()
    path = folder / f"{_digest(matrix)}.{kind}.safetensors"
    factors = _read(path, shapes)
    if factors is None:
        factors = compute()
        try:
            _write(path, factors)
        except InputError as error:
            log.warning("a decomposition could not be kept: %s", error)
    return factors


def _digest(matrix: Tensor) -> str:
    digest = hashlib.sha256(repr((str(matrix.dtype), tuple(matrix.shape))).encode())
    digest.update(matrix.detach().contiguous().numpy().data)
    return digest.hexdigest()


def _checksum(path: Path, tensors: dict[str, Tensor]) -> str:
    return checksum(path.name, tensors)  # with the name, so that the entry of another matrix is not taken for this one's


def _read(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            expected = (opened.metadata() or {}).get("checksum")
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        log.warning("%s is damaged (%s): the decomposition is computed again", path, type(error).__name__)
        return None
    if expected != _checksum(path, tensors):
        log.warning("%s does not have its checksum: the decomposition is computed again", path)
        return None
    # Columns, of which there may be more or too few, aside.
    lengths = {name: tensor.shape[:1] for name, tensor in tensors.items()}
    if lengths != {name: shape[:1] for name, shape in shapes.items()} or any(
        tensor.dim() != len(shapes[name]) or not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all())
        for name, tensor in tensors.items()
    ):
        log.warning("%s is not the decomposition of its matrix: it is computed again", path)
        return None
    if any(tensors[name].shape[1:] < shape[1:] for name, shape in shapes.items()):
        return None
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic_file(path) as temporary:
        write_tensors(temporary, tensors, {"checksum": _checksum(path, tensors)})
