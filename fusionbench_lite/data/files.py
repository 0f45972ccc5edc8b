"""Read NAME.npz and NAME.json, and say in one line what is wrong with them.

NAME.npz holds `train_images` [N, 32, 32, 3] uint8, `train_labels` [N] integers, `test_images` and `test_labels`.
NAME.json holds `classes` (a list of names, in the order of the labels) and, if wanted, `num_classes`, and `train` and
`test`, the numbers of examples, which are then compared with the arrays.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError, nearest

SIZE = 32
_PARTS = ("train", "test")


def read(folder: Path, name: str, size: int | None = SIZE) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """Return the class names and the four arrays of a task; raises InputError naming the file and the fix.

    `size` is the height and width that images have to have; None accepts any.
    """
    classes, counts = _read_description(_there(folder, f"{name}.json"))
    path = _there(folder, f"{name}.npz")
    arrays = _read_arrays(path)
    for part in _PARTS:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        _check_images(path, f"{part}_images", images, size)
        arrays[f"{part}_labels"] = _checked_labels(path, f"{part}_labels", labels, len(images), classes)
        if part in counts and counts[part] != len(images):
            raise InputError(
                f"{path}: {part}_images holds {len(images)} examples, but {name}.json says {counts[part]}: correct one"
            )
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}): write it anew") from error
    classes = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(classes, list) or not classes or not all(isinstance(entry, str) for entry in classes):
        raise InputError(f'{path}: "classes" must be a list of class names in the order of the labels')
    declared = content.get("num_classes", len(classes))
    if declared != len(classes):
        raise InputError(f"{path}: num_classes is {declared!r}, but classes lists {len(classes)} names: correct one")
    counts = {part: content[part] for part in _PARTS if part in content}
    for part, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise InputError(f"{path}: {part!r} must be the number of {part} examples, got {count!r}")
    return tuple(classes), counts


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    wanted = [f"{part}_{kind}" for part in _PARTS for kind in ("images", "labels")]
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path} holds a single array, not an archive: save it with numpy.savez and four arrays")
        with archive:
            missing = [field for field in wanted if field not in archive.files]
            if missing:
                there = ", ".join(archive.files) or "nothing"
                raise InputError(f"{path} has no array {missing[0]!r} (it holds {there}): add it")
            return {field: archive[field] for field in wanted}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a readable .npz file ({reason}): copy or write it anew") from error


def _check_images(path: Path, field: str, images: NDArray[Any], size: int | None) -> None:
    height, width = ("H", "W") if size is None else (size, size)
    fits = images.ndim == 4 and images.shape[3] == 3 and 0 not in images.shape[1:3]
    if not fits or (size is not None and images.shape[1:3] != (size, size)):
        raise InputError(f"{path}: {field} has shape {list(images.shape)}, not [N, {height}, {width}, 3]: resize the images")
    if images.dtype != np.uint8:
        raise InputError(f"{path}: {field} is {images.dtype}, not uint8: store pixels as whole numbers from 0 to 255")
    if len(images) == 0:
        raise InputError(f"{path}: {field} holds no example: put at least one there")


def _checked_labels(
    path: Path, field: str, labels: NDArray[Any], count: int, classes: tuple[str, ...]
) -> NDArray[np.int64]:
    if labels.shape != (count,):
        raise InputError(f"{path}: {field} has shape {list(labels.shape)}, not [{count}]: give one label per image")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{path}: {field} is {labels.dtype}, not an integer type: store class numbers from 0")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise InputError(
            f"{path}: {field} runs from {low} to {high}, but {len(classes)} classes are numbered 0 to {len(classes) - 1}: "
            f"number the labels so, or name all classes in {path.stem}.json"
        )
    return labels.astype(np.int64)
