"""Read NAME.npz and NAME.json, and say in one line what is wrong with them.

NAME.npz holds `train_images` [N, 32, 32, 3] uint8, `train_labels` [N] integers, `test_images` and `test_labels`, or these in
another layout that layouts.py knows. Other arrays, such as `val_images`, are not read. NAME.json holds `classes` (a list of names,
in the order of the labels, or an object from "0", "1", ... to names) and, if wanted, `num_classes`, and `train` and `test`, the
numbers of examples, which are then compared with the arrays.
"""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.layouts import images_of, labels_of
from fusionbench_lite.data.signatures import head_of, other_kind
from fusionbench_lite.errors import InputError, nearest

log = logging.getLogger(__name__)

SIZE = 32
_PARTS = ("train", "test")


def read(folder: Path, name: str, size: int | None = SIZE) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """Return the class names and the four arrays of a task; raises InputError naming the file and the fix.

    `size` is the height and width that images have to have; None accepts any.
    """
    classes, counts = _read_description(_there(folder, f"{name}.json"))
    path = _there(folder, f"{name}.npz")
    arrays, others = _read_arrays(path)
    for part in _PARTS:
        images = arrays[f"{part}_images"] = images_of(path, f"{part}_images", arrays[f"{part}_images"], size)
        arrays[f"{part}_labels"] = labels_of(path, f"{part}_labels", arrays[f"{part}_labels"], len(images), classes)
        if part in counts and counts[part] != len(images):
            raise InputError(
                f"{path}: {part}_images holds {len(images)} examples, but {name}.json says {counts[part]}: correct one"
            )
    if others:
        log.info("%s: arrays %s are not read", path, ", ".join(others))
    return classes, arrays


def _there(folder: Path, filename: str) -> Path:
    path = folder / filename
    if not path.is_file():
        suffix = path.suffix
        match = nearest(path.stem, (other.stem for other in folder.glob(f"*{suffix}")))
        hint = f" (the nearest name there is {match}{suffix})" if match else ""
        raise InputError(f"{path} is missing{hint}: a task is a pair of files, NAME.npz and NAME.json")
    return path


def _read_description(path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    try:
        content = json.loads(path.read_bytes())  # bytes: a byte order mark or UTF-16 is understood
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}): write it anew") from error
    classes = _class_names(content.get("classes") if isinstance(content, dict) else None)
    if not classes:
        raise InputError(
            f'{path}: "classes" must be a list of class names in the order of the labels, such as ["cat", "dog"]'
        )
    declared = content.get("num_classes", len(classes))
    if declared != len(classes):
        raise InputError(f"{path}: num_classes is {declared!r}, but classes lists {len(classes)} names: correct one")
    counts = {part: content[part] for part in _PARTS if part in content}
    for part, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise InputError(f"{path}: {part!r} must be the number of {part} examples, got {count!r}")
    return tuple(classes), counts


def _class_names(given: Any) -> list[str] | None:
    """Return names of a list, of the numbers from 0, or of an object whose keys are these numbers; None for anything else."""
    if isinstance(given, dict):
        numbers = [str(number) for number in range(len(given))]
        given = [given[number] for number in numbers] if set(given) == set(numbers) else None
    if not isinstance(given, list):
        return None
    if all(type(entry) is int for entry in given) and given == list(range(len(given))):
        return [str(entry) for entry in given]
    return given if all(isinstance(entry, str) for entry in given) else None


def _read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the arrays of a task, and the names of the others that the file holds."""
    wanted = [f"{part}_{kind}" for part in _PARTS for kind in ("images", "labels")]
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path} holds a single array, not an archive: save it with numpy.savez and four arrays")
        with archive:
            missing = [field for field in wanted if field not in archive.files]
            if missing:
                there = ", ".join(archive.files) or "nothing"
                raise InputError(f"{path} has no array {missing[0]!r} (it holds {there}): add it, under this name")
            others = sorted(set(archive.files) - set(wanted))
            return {field: _array(path, archive, field) for field in wanted}, others
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        kind = other_kind(head_of(path))
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = f"it is {kind}" if kind and kind != "a zip file" else reason
        raise InputError(f"{path} is not a readable .npz file ({reason}): copy or write it anew") from error


def _array(path: Path, archive: Any, field: str) -> NDArray[Any]:
    try:
        read: NDArray[Any] = archive[field]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise InputError(
            f"{path}: {field} is an array of Python objects, which are not read: store numpy.array({field}.tolist()), of rows "
            "of one shape"
        ) from error
    return read
