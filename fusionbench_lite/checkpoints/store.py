"""Converted files in the cache: <cache>/checkpoints/<group>/<model>-<layout>/<name>-<first 12 of the source's SHA-256>.safetensors.

A file's metadata say what it was made of and hold a checksum of themselves and of all tensors. A look-up compares it when a file
is first seen and whenever its state is not what it was then, its size, times or number (a stamp beside it has them); a run compares
those of all files that it uses (`check`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite.base.file_hashes import state_of
from fusionbench_lite.base.safetensors_header import METADATA, header_of
from fusionbench_lite.checkpoints import soundness
from fusionbench_lite.checkpoints.api import Report
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file
from fusionbench_lite.weights.readers import checksum, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from fusionbench_lite.models.clip import ClipSize

log = logging.getLogger(__name__)

VERSION = "1"
"""Changes when the same source gives other tensors or other metadata."""
Metadata = dict[str, str]


def folder_of(cache: Path, group: str, model: str, layout: str) -> Path:
    """Return where the converted files of a family's model are."""
    return cache / "checkpoints" / group / f"{model}-{layout}"


def write(folder: Path, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Keep tensors under a name and the `sha256` of their source, whole or not at all; raises InputError."""
    said = {**metadata, "version": VERSION}
    path = folder / f"{name}-{said['sha256'][:12]}.safetensors"
    with atomic_file(path) as temporary:
        write_tensors(temporary, tensors, {**said, "checksum": checksum(_salt(said), tensors), "format": "pt"})
    _stamp(path)
    soundness.note(path)
    return path


def check(files: Iterable[tuple[Path, Metadata]], report: Report | None = None) -> None:
    """Compare the content of converted files with their checksums, once per process. Raises soundness.Damaged."""
    try:
        soundness.check({path: (_salt(metadata), metadata.get("checksum")) for path, metadata in files}, report)
    except soundness.Damaged as error:
        for path in error.paths:  # no later process, and no `doctor`, is to believe them
            with contextlib.suppress(OSError):
                _stamp_of(path).unlink()
        raise


def lookup(folder: Path, name: str, accept: Callable[[Metadata], bool]) -> tuple[Path, Metadata] | None:
    """Return a sound converted file of this name whose metadata are accepted, the newest first; None where there is none."""
    paths = [path for path in folder.glob(f"{name}-*.safetensors") if len(path.name) == len(name) + 25]
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime):
        metadata = metadata_of(path)
        if metadata is None or metadata.get("version") != VERSION or not accept(metadata):
            continue
        told = soundness.seen(path) is False
        if _sound(path, metadata):
            return path, metadata
        if not told:
            log.warning("%s is damaged: it is converted again", path)
    return None


def metadata_of(path: Path) -> Metadata | None:
    """Return the metadata of a safetensors file of full length, read without torch; None for any other file."""
    header = header_of(path)
    return None if header is None else {str(key): str(value) for key, value in header.get(METADATA, {}).items()}


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a safetensors file from its header."""
    return {name: tuple(entry["shape"]) for name, entry in (header_of(path) or {}).items() if name != METADATA}


def dtypes_of(path: Path) -> set[str]:
    """Return the dtypes of a safetensors file from its header, as the format spells them."""
    return {str(entry["dtype"]) for name, entry in (header_of(path) or {}).items() if name != METADATA}


def numbers_of(size: ClipSize) -> str:
    """Return an architecture as metadata spell it."""
    return json.dumps(dataclasses.asdict(size), sort_keys=True)


def _salt(metadata: Mapping[str, str]) -> str:
    return json.dumps({key: value for key, value in metadata.items() if key not in ("checksum", "format")}, sort_keys=True)


def _sound(path: Path, metadata: Metadata) -> bool:
    seen = soundness.seen(path)
    if seen is False:
        return False
    with contextlib.suppress(OSError):
        if _stamp_of(path).read_text() == state_of(path):
            return True
    sound = seen or soundness.is_sound(path, _salt(metadata), metadata.get("checksum"))
    if sound:
        with contextlib.suppress(InputError):  # without a stamp, a hash per process and no more
            _stamp(path)
    return sound


def _stamp_of(path: Path) -> Path:
    return path.with_suffix(".stamp")


def _stamp(path: Path) -> None:
    with atomic_file(_stamp_of(path)) as temporary:
        temporary.write_text(state_of(path))
