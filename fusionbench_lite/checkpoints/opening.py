"""Source files of any supported form as tensors, and what a file is that has none of these forms."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench_lite.errors import InputError
from fusionbench_lite.weights import foreign
from fusionbench_lite.weights.stored import contents, folders, indexes

if TYPE_CHECKING:
    from torch import Tensor

_OTHERS = {
    ".onnx": "ONNX", ".msgpack": "Flax", ".pb": "TensorFlow", ".tflite": "TensorFlow Lite", ".mlmodel": "Core ML",
    ".engine": "TensorRT", ".distcp": "torch.distributed.checkpoint, one of several,",
}
"""Libraries by endings, of files that their first bytes do not tell."""


@dataclasses.dataclass(frozen=True)
class Raw:
    """The tensors of a source file, plain values beside them, and its `form`: "safetensors", "module", "state_dict" or
    "checkpoint", of which state dict or module are entries. `part` says which file of several it is, as its name tells."""

    tensors: dict[str, Tensor]
    attributes: dict[str, Any]
    form: str
    class_name: str = ""
    part: str = ""


def read(path: Path) -> Raw:
    """Return the tensors of a safetensors file, of a pickled module, state dict or training checkpoint, or of a folder of
    safetensors files (or their index); raises InputError that says what any other file is."""
    if path.is_dir() or path.suffix.lower() == ".json":
        return _read_folder(path)
    try:
        kind, words = contents.kind_of(path)
    except (OSError, ValueError) as error:
        reason = contents.dangling(path) or f"{contents.first_line(error)}: {contents.permitted(error)}"
        raise InputError(f"cannot read {path}: {reason}") from error
    name = _OTHERS.get(path.suffix.lower())
    if kind == "unknown" and name is not None:
        kind, words = "foreign", f"it is a file of {name}: save the state_dict() of the model with PyTorch"
    if kind == "foreign" or (kind == "unknown" and path.suffix == ".safetensors"):
        raise InputError(f"cannot read {path}: {words}")
    part = indexes.part_of(path.with_suffix(".safetensors").name)
    alone = f"part {part.number} of {part.total}" if part else ""
    if kind != "safetensors":
        from fusionbench_lite.weights.pickles import read_pickled

        module = read_pickled(path)
        return Raw(
            tensors=module.tensors, attributes=module.attributes, form=module.kind, class_name=module.class_name, part=alone,
        )
    return Raw(_loaded(path), {}, "safetensors", part=alone)


def _read_folder(path: Path) -> Raw:
    found = folders.describe(path)
    if found.kind != "model":
        fix = "" if found.fault else f": {foreign.MERGE_FIRST}"
        raise InputError(found.sentence + fix)
    tensors = {name: tensor for file in found.files for name, tensor in _loaded(file).items()}
    return Raw({name: tensors[name] for name in found.tensors}, {}, "safetensors")


def _loaded(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot read {path}: {reason}; it is incomplete or damaged, fetch it again") from error


@contextlib.contextmanager
def whole(raw: Raw, who: str) -> Iterator[None]:
    """What a tower lacks that was read from one file of several is in the others."""
    try:
        yield
    except InputError as error:
        if not raw.part:
            raise
        fix = "give the folder of all" if raw.form == "safetensors" else "load all with their library, save them as safetensors"
        raise InputError(f"{who} is {raw.part} of a model and holds no whole image tower of CLIP: {fix} ({error})") from error
