"""The arrays of one task, from NAME.npz and NAME.json in a folder or drawn and kept in the cache."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import logging
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.base import randomness
from fusionbench_lite.data import files, layouts, mini
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.paths import atomic_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

log = logging.getLogger(__name__)

Stored = NDArray[Any] | Mapping[str, NDArray[Any]]
"""Examples as they are kept: one array, or named arrays, of first dimension B."""
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_DRAWN_WITH = ("numpy", "scipy", "scikit-learn", "matplotlib", "pillow")


class Columns(Mapping[str, NDArray[Any]]):
    """Named arrays [N, ...] of the same examples, such as token ids and their mask: `columns[rows]` has those of some rows."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.arrays = dict(arrays)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, str):
            return self.arrays[rows]
        return {name: array[rows] for name, array in self.arrays.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of examples, and of numbers that one has."""
        return len(self), sum(math.prod(array.shape[1:]) for array in self.arrays.values())

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, types, shapes and content."""
        digest = hashlib.sha256()
        for name, array in self.arrays.items():
            digest.update(repr((name, array.dtype.str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TaskData:
    """One task: images uint8 [N, S, S, 3] or other inputs, labels int64 [N] from 0 to the number of classes - 1.

    Inputs may be arrays, or what gives arrays for rows when they are read; those have a `fingerprint`, which stands for
    their content in the hash. Images may have `originals`, see `Originals`. `source` says where the test images are from,
    `files` maps names of files to their SHA-256 as far as known, `caveats` are sentences that belong to every result.
    `metric` names what the task is judged by (evaluation/metrics.py).
    """

    name: str
    classes: tuple[str, ...]
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    _: dataclasses.KW_ONLY
    source: str = ""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    metric: str = "accuracy"

    def inputs(self, split: str) -> Any:
        """Return the inputs of a split, "train" or "test", as they are stored: `inputs[rows]` are a `Stored`."""
        return getattr(self, f"{split}_images")

    def labels(self, split: str) -> NDArray[np.int64]:
        """Return the labels of a split, int64 [N]."""
        read: NDArray[np.int64] = getattr(self, f"{split}_labels")
        return read

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the name, the class names and every array with its shape, in hexadecimal."""
        digest = hashlib.sha256(repr((self.name, self.classes)).encode())
        for field in ARRAYS:
            value = getattr(self, field)
            if not isinstance(value, np.ndarray):
                # The labels of a split that is not opened yet follow from the files that its fingerprint names.
                digest.update(repr((field, getattr(value, "fingerprint", None))).encode())
                continue
            array = np.ascontiguousarray(value)
            digest.update(repr((field, array.dtype.str, array.shape)).encode())
            digest.update(array.data)
        return digest.hexdigest()


def normalise(images: Tensor) -> Tensor:
    """Return uint8 images [B, H, W, 3] as float32 [B, 3, H, W], 0 to 255 mapped to -2 to 2."""
    return ((images.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)


def decode_ahead(images: Any, rows: Any) -> None:
    """Have rows of images at hand that are decoded when they are read: faster together than one batch after another."""
    ahead = getattr(images, "decode_ahead", None)
    if ahead is not None:
        ahead(rows)


def fingerprint(images: Any) -> str | None:
    """Return what stands for the content of images that are not held in memory; None for those that are."""
    content: str | None = getattr(images, "fingerprint", None)
    return content


def lengths_of(stored: Any) -> NDArray[np.int64] | None:
    """Return how long inputs of unequal length are, int64 [N]; None where all are alike."""
    lengths: NDArray[np.int64] | None = getattr(stored, "lengths", None)
    return lengths


class Originals(Protocol):
    """Training images as they were before they were resized and cut to the squares of evaluation."""

    def copy_ahead(self) -> None:
        """Bring the images where single ones are read quickly; raises InputError."""
        ...

    def __call__(self, row: int) -> Image:
        """Return the image of a row of the training images, RGB, at its own resolution; threads may call this at once.

        Raises decoding.CorruptImage where it cannot be decoded and InputError where its file cannot be read.
        """
        ...

    def refusal(self, rows: NDArray[np.int64]) -> InputError:
        """Return the error that names rows that cannot be decoded, beside those that are known already."""
        ...


def originals(images: Any) -> Originals | None:
    """Return the originals of images that were cut from others; None where there are none at hand, or the images are it."""
    given: Originals | None = getattr(images, "originals", None)
    return given


def reads_files(name: str, data_dir: Path | None) -> bool:
    """True when this task comes from files of `data_dir`: one of NAME.npz and NAME.json is there."""
    return data_dir is not None and any((data_dir / f"{name}{suffix}").exists() for suffix in (".npz", ".json"))


def load_task(
    name: str, *, data_dir: Path | None, seed: int, cache_dir: Path, train: int = mini.TRAIN, test: int = mini.TEST
) -> TaskData:
    """Return the data of a task.

    NAME.npz with NAME.json in `data_dir` wins; else the task is one of the drawn ones, with `train` and `test`
    images drawn from `seed`. Raises InputError for an unknown task or for files that are not as they should be.
    """
    if data_dir is not None and reads_files(name, data_dir):
        classes, stored = files.read(data_dir, name)
        arrays: dict[str, Any] = {field: stored[field] for field in ARRAYS}
        unused = layouts.unused_classes(name, classes, arrays["train_labels"], arrays["test_labels"])
        return TaskData(name=name, classes=classes, caveats=unused, **arrays)
    if name not in mini.names():
        names = {*mini.names(), *(path.stem for path in data_dir.glob("*.npz"))} if data_dir else mini.names()
        where = f"neither drawn nor in {data_dir}" if data_dir else "not drawn, and no data_dir is given"
        raise InputError(f"task {name!r} is {where}: {did_you_mean(name, names)}")
    return _drawn(name, seed, (train, test), cache_dir / "data")


def _drawn(name: str, seed: int, counts: tuple[int, int], folder: Path) -> TaskData:
    """Draw a task, or find what was drawn before by the same code; a damaged file is drawn anew."""
    key = hashlib.sha256(repr((name, seed, counts, _drawing_version())).encode()).hexdigest()[:16]
    path = folder / f"{name}-seed{seed}-{key}.npz"
    if path.exists():
        kept = _kept(name, path)
        if kept is not None:
            return kept
        log.warning("%s is damaged: drawing %s again", path, name)
    parts = (mini.draw(name, part, seed, count) for part, count in zip(("train", "test"), counts, strict=True))
    (train_images, train_labels), (test_images, test_labels) = parts
    drawn = TaskData(
        name=name, classes=mini.DRAWINGS[name].classes, train_images=train_images, train_labels=train_labels,
        test_images=test_images, test_labels=test_labels,
    )
    arrays: dict[str, Any] = {field: getattr(drawn, field) for field in ARRAYS}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, sha256=np.array(drawn.sha256), **arrays)
    return drawn


def _kept(name: str, path: Path) -> TaskData | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            expected = str(archive["sha256"])
            kept = TaskData(name=name, classes=mini.DRAWINGS[name].classes, **{field: archive[field] for field in ARRAYS})
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
    return kept if kept.sha256 == expected else None


@functools.cache
def _drawing_version() -> str:
    """Return a hash of all that decides what is drawn: the drawing code, and the libraries it draws with."""
    digest = hashlib.sha256()
    for source in (*sorted(Path(mini.__file__).parent.glob("*.py")), Path(randomness.__file__)):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update(repr([(library, importlib.metadata.version(library)) for library in _DRAWN_WITH]).encode())
    return digest.hexdigest()
