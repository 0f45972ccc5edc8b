"""Arrays of images and labels in the layouts that data sets are published in, brought to one where nothing is in doubt.

Images become uint8 [N, H, W, 3] from grey ones [N, H, W], [N, H, W, 1] and [N, 1, H, W] and from [N, 3, H, W]; labels become int64
[N] from [N, 1], one-hot rows and names of classes. What could mean two things is refused in one line that says how to store it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.errors import InputError, did_you_mean

_CHANNELS = (1, 3)
_FEW = 16
"""The largest value of images that are no darker than others, but of up to 4 bits, such as scikit-learn's digits from 0 to 16."""


def images_of(path: Path, field: str, images: NDArray[Any], size: int | None) -> NDArray[np.uint8]:
    """Return images, uint8 [N, H, W, 3]; H and W are `size` if that is given.

    Raises InputError naming file, array, both shapes or types, and what to store.
    """
    _check_type(path, field, images)
    height, width = ("H", "W") if size is None else (size, size)
    wrong = f"{path}: {field} has shape {list(images.shape)}, not [N, {height}, {width}, 3]"
    grey, view, selection = _view(field, images)
    if view is None:
        raise InputError(f"{wrong}: {selection}")
    if size is not None and view.shape[1:3] != (size, size):
        resized = f"numpy.stack([PIL.Image.fromarray(image).resize(({size}, {size})) for image in {selection}])"
        raise InputError(f"{wrong}: resize the images, for example {resized}")
    if len(view) == 0:
        raise InputError(f"{path}: {field} holds no example: put at least one there")
    if 0 < (most := int(images.max())) <= _FEW:
        held, factor = ("0 and 1", "* 255") if most == 1 else (f"0 to {most}", f"* {255 // most}")
        white = "" if 255 % most == 0 else ", or what else makes its white 255"
        raise InputError(f"{path}: {field} holds {held} only, and 255 is white: store {field} {factor}{white}")
    if not grey:
        return np.ascontiguousarray(view) if size is not None else view
    coloured = np.broadcast_to(view[..., None], (*view.shape, 3))
    return np.ascontiguousarray(coloured) if size is not None else coloured  # of any size: many, and read one by one


def _view(field: str, images: NDArray[Any]) -> tuple[bool, NDArray[Any] | None, str]:
    """Return whether images are grey, a view [N, H, W] or [N, H, W, 3] and its expression; None and the advice where in doubt."""
    shape = images.shape
    if 0 in shape[1:]:
        return False, None, "it holds no pixel: store the images"
    if images.ndim == 3 and shape[2] not in _CHANNELS:
        return True, images, field
    if images.ndim == 3:
        return False, None, f"a single image needs an axis in front, {field}[None], and grey images are [N, H, W]"
    if images.ndim == 2:
        side = round(shape[1] ** 0.5)
        axes = f"(-1, {side}, {side})" if side * side == shape[1] else "(-1, H, W, 3) or (-1, 3, H, W), as the pixels are ordered"
        return False, None, f"store the rows as images, {field}.reshape{axes}"
    if images.ndim != 4:
        return False, None, "store one image per row"
    if shape[3] == 3:
        return False, images, field
    if shape[3] == 1:
        return True, images[..., 0], f"{field}[..., 0]"
    if shape[1] == 1:
        return True, images[:, 0], f"{field}[:, 0]"
    if shape[1] == 3 and (shape[3] > 4 or shape[2] == shape[3]):
        return False, images.transpose(0, 2, 3, 1), f"{field}.transpose(0, 2, 3, 1)"
    if shape[3] == 4:
        return False, None, f"of 4 channels store the colours, {field}[..., :3], if these are red, green, blue and alpha"
    if shape[2] == 3:
        return False, None, f"if the images are counted by the last axis, store {field}.transpose(3, 0, 1, 2)"
    if shape[1] == shape[2] == shape[3]:
        return False, None, f"of volumes store one slice each, such as {field}[:, {shape[1] // 2}]"
    return False, None, "store red, green and blue as the last axis"


def _check_type(path: Path, field: str, images: NDArray[Any]) -> None:
    if images.dtype == np.uint8:
        return
    wrong = f"{path}: {field} is {images.dtype}, not uint8"
    if images.dtype == np.bool_:
        raise InputError(f"{wrong}: store {field}.astype(numpy.uint8) * 255")
    if images.dtype.kind not in "iuf" or not images.size:
        raise InputError(f"{wrong}: store pixels as whole numbers from 0 to 255")
    if not np.isfinite(images).all():
        raise InputError(f"{wrong}, with values that are NaN or infinite: correct them, and store whole numbers from 0 to 255")
    low, high = images.min().item(), images.max().item()
    raise InputError(f"{wrong}, with values from {low:g} to {high:g}: {_scaling(field, low, high, images.dtype.kind == 'f')}")


def _scaling(field: str, low: float, high: float, is_float: bool) -> str:
    """Return what to store instead of numbers of this range."""
    if low >= 0 and 0 < high <= 1:
        return f"store numpy.uint8(numpy.round({field} * 255))" if is_float else f"store numpy.uint8({field} * 255)"
    if -1 <= low < 0 < high <= 1 and is_float:
        return f"store numpy.uint8(numpy.round(({field} + 1) * 127.5)), if -1 is black"
    if low >= 0 and high <= 255:
        return f"store numpy.uint8(numpy.round({field}))" if is_float else f"store numpy.uint8({field}), if 255 is white"
    if low >= 0 and high <= 65535 and not is_float:
        most = 65535 if high > 16383 else 16383 if high > 4095 else 4095
        return f"store numpy.uint8(numpy.round({field} * (255 / {most}))), if {most} is white"
    return "undo their normalisation, and store pixels as whole numbers from 0 to 255"


def labels_of(path: Path, field: str, labels: NDArray[Any], count: int, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return labels, int64 [count] from 0 to the number of classes - 1; raises InputError naming file, array and what to store."""
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape == (count, len(classes)) and labels.dtype.kind in "biuf":
        labels = _from_one_hot(path, field, labels)
    if labels.shape != (count,):
        several = labels.ndim == 2 and len(labels) == count
        fix = f"sets of several labels per image are not evaluated, and one-hot rows have {len(classes)} columns here"
        raise InputError(
            f"{path}: {field} has shape {list(labels.shape)}, not [{count}]: {fix if several else 'give one label per image'}"
        )
    if labels.dtype.kind in "US":
        labels = _from_names(path, field, labels, classes)
    if not np.issubdtype(labels.dtype, np.integer):
        whole = labels.dtype.kind == "b" or (labels.dtype.kind == "f" and bool((labels == np.round(labels)).all()))
        store = f"{field}.astype(int)" if whole else "whole ones"
        raise InputError(f"{path}: {field} is {labels.dtype}, not an integer type: store class numbers from 0, {store}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        fix = "number the labels so"
        if (low, high) == (1, len(classes)):
            fix = f"store {field} - 1, if they count from 1"
        elif low == -1:
            fix = f"-1 often marks images without a label: leave the {int((labels == -1).sum())} images out"
        raise InputError(
            f"{path}: {field} runs from {low} to {high}, but {len(classes)} classes are numbered 0 to {len(classes) - 1}: "
            f"{fix}, or name all classes in {path.stem}.json"
        )
    return labels.astype(np.int64)


def _from_one_hot(path: Path, field: str, rows: NDArray[Any]) -> NDArray[np.int64]:
    counts = (rows != 0).sum(1)
    wrong = np.flatnonzero((counts != 1) | (rows.astype(float) != (rows != 0)).any(1))
    if wrong.size:
        raise InputError(
            f"{path}: {field} has shape {list(rows.shape)}, not [{len(rows)}], and row {wrong[0]} marks {counts[wrong[0]]} classes "
            f"or weights: sets of several labels per image are not evaluated; keep rows of one class, as numpy.argmax({field}, 1)"
        )
    labels: NDArray[np.int64] = np.argmax(rows, 1)
    return labels


def _from_names(path: Path, field: str, labels: NDArray[Any], classes: tuple[str, ...]) -> NDArray[np.int64]:
    repeated = next((name for name, count in Counter(classes).items() if count > 1), None)
    if repeated is not None:
        raise InputError(f"{path}: {field} holds names, and two classes are called {repeated!r}: store class numbers from 0")
    names = np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels
    known = {name: number for number, name in enumerate(classes)}
    unknown = next((name for name in np.unique(names).tolist() if name not in known), None)
    if unknown is not None:
        fix = f"store {field}.astype(int)" if unknown.isdecimal() else did_you_mean(unknown, classes)
        raise InputError(f"{path}: {field} holds {unknown!r}, which is no class of {path.stem}.json: {fix}")
    return np.array([known[name] for name in names.tolist()], np.int64)


def unused_classes(
    name: str, classes: tuple[str, ...], train: NDArray[np.int64] | None, test: NDArray[np.int64]
) -> tuple[str, ...]:
    """Return what a reader of results has to know of classes without examples, as sentences."""
    every = np.arange(len(classes))
    untested = np.setdiff1d(every, test)
    said = []
    if untested.size:
        said.append(
            f"{name}: {untested.size} of {len(classes)} classes have no test image ({_some(classes, untested)}): accuracy is that "
            "of the others."
        )
    untrained = np.setdiff1d(every, train) if train is not None else every[:0]
    if untrained.size:
        share = int(np.isin(test, untrained).sum())
        said.append(
            f"{name}: {untrained.size} of {len(classes)} classes have no training image ({_some(classes, untrained)}), so that "
            f"they are not learned; {share:,} of {len(test):,} test images are of these classes."
        )
    return tuple(said)


def _some(classes: tuple[str, ...], numbers: NDArray[np.int64]) -> str:
    shown = ", ".join(classes[number] for number in numbers[:3].tolist())
    return shown + ", ..." * (len(numbers) > 3)
