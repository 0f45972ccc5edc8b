"""One task's data: the test split decoded whole and checked, the training split left where it is until it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusionbench_lite.base import randomness
from fusionbench_lite.data.arrays import TaskData
from fusionbench_lite.data.vision import decoding, modes, tasks
from fusionbench_lite.data.vision.cache import Alter, Decoded, Report
from fusionbench_lite.data.vision.encoded import Arrays, Rows, Split
from fusionbench_lite.data.vision.folders import class_names
from fusionbench_lite.data.vision.images import Deferred, Images, Labels, Opened
from fusionbench_lite.data.vision.index import BROKEN
from fusionbench_lite.data.vision.originals import SplitOriginals
from fusionbench_lite.data.vision.sources import ImageSource, Sources, find, local_source
from fusionbench_lite.data.vision.tasks import Task
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import file_sha256

if TYPE_CHECKING:
    from PIL.Image import Image


def load(task: str, sources: Sources, report: Report | None = None, size: int = decoding.SIZE) -> TaskData:
    """Return the data of a task: images uint8 [N, size, size, 3] that are decoded once, into the cache.

    The test split is fetched and decoded whole, or `sources.limit` rows of it; the training split is fetched when it is first
    read, and its rows are decoded as they are read. Raises InputError for anything missing, damaged or of the wrong size.
    """
    entry = tasks.task(task, sources.variant, sources.tasks_file)
    split = _checked(entry, find(entry, sources, sources.split, report).split(sources.split), sources.split)
    decoded = _decoded(entry, sources, split, sources.split, size, generated=_is_generated(sources))
    rows = spaced(len(split.labels), sources.limit)
    test = _sound(entry, sources, split, decoded, rows, report)
    train_images, train_labels = _train(entry, sources, size, report, local_only=not split.exact)
    crcs = decoded.index.checksums(test.rows)
    whole = Deferred(lambda: len(test.rows), size, lambda: test)
    return TaskData(
        name=task, classes=class_names(entry)[0], train_images=train_images, train_labels=train_labels,
        test_images=Images(whole, lambda: hashlib.sha256(crcs.astype("<u4").tobytes()).hexdigest()),  # type: ignore[arg-type]
        test_labels=test.labels, files=dict(split.files), source=split.where,
        caveats=(
            *entry.caveats, *split.notes, *_size_caveats(entry, split), *_corruption_caveats(sources),
            *_modes_caveats(entry, split, decoded, test.rows), *_left_out(entry, split, np.setdiff1d(rows, test.rows)),
        ),
    )


def _train(task: Task, sources: Sources, size: int, report: Report | None, local_only: bool) -> tuple[Any, Any]:
    """Return images and labels of the training split, which is opened when it is first read.

    `local_only`: the test images are the user's own, and so have the training images to be. A missing training split has length 0.
    """

    def place() -> ImageSource:
        if local_only and local_source(task, sources, "train") is None:
            raise InputError(f"task {task.name!r} has no training images below {sources.data_dir}: put them into {task.name}/train")
        return find(task, sources, "train", report)

    def opened() -> Opened:
        split = _checked(task, place().split("train"), "train")
        decoded = _decoded(task, sources, split, "train", size)
        rows = np.arange(len(split.labels))
        if sources.skip_corrupt:  # which rows there are is known only when all have been decoded
            return _sound(task, sources, split, decoded, rows, report)
        return Opened(decoded, rows, split.labels)

    def count() -> int | None:
        try:
            exact = place().exact
        except InputError:
            return 0
        # Published splits have the size of the table, which is checked when they are opened: no need to fetch them to know it.
        return task.train if exact and not sources.skip_corrupt else None

    def fingerprint() -> str:
        try:
            content = place().fingerprint("train")
        except InputError:  # a run that only reads test images is none the worse for it
            return "no training images"
        return f"{content} {json.dumps(decoding.version(), sort_keys=True)} {size}" + " sound" * bool(sources.skip_corrupt)

    deferred = Deferred(count, size, opened)
    return Images(deferred, fingerprint, SplitOriginals(deferred, report)), Labels(deferred)


def _sound(task: Task, sources: Sources, split: Split, decoded: Decoded, rows: Rows, report: Report | None) -> Opened:
    """Decode rows and leave out those that cannot be. Raises InputError where there are more of them than allowed."""
    decoded.ensure(rows, report, f"decoding {task.name}")
    is_broken = decoded.index.states(rows) == BROKEN
    broken = rows[is_broken]
    if len(broken) > sources.skip_corrupt:
        raise decoded.refusal(broken, f"{{}} of {len(rows)}")
    rows = rows[~is_broken]
    if not rows.size:
        raise InputError(f"task {task.name!r}: no image of {split.where} can be decoded: choose another source")
    return Opened(decoded, rows, split.labels[rows])


def spaced(size: int, limit: int | None) -> Rows:
    """Return `limit` evenly spaced rows of `size`, all without a limit: splits that are sorted by class keep many classes."""
    if limit is None or limit >= size:
        return np.arange(size)
    return (np.arange(limit) * size) // limit


def _decoded(task: Task, sources: Sources, split: Split, name: str, size: int, generated: bool = False) -> Decoded:
    about: dict[str, Any] = {"task": task.name, "split": name, "source": split.identity, "size": size, **decoding.version()}
    if not isinstance(split.encoded, Arrays) and (not split.exact or sources.tasks_file is not None):
        about["modes"] = modes.VERSION  # images of published splits have 8 bits per channel: what is decoded of them stays
    alter: Alter | None = None
    if generated and sources.corruption is not None:
        about |= {
            "corruption": sources.corruption, "severity": sources.severity, "seed": sources.seed, "code": _corruption_version(),
        }
        alter = _corruption(task, sources)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    about |= {"where": split.where, "images": len(split.labels)}
    return Decoded(sources.cache / "images" / f"{task.name}-{name}-{key}", split.encoded, about, size, alter)


def _is_generated(sources: Sources) -> bool:
    return sources.corruption is not None and sources.corruption_from == "generated"


def _corruption(task: Task, sources: Sources) -> Callable[[Image, int], Image]:
    """Return the function that corrupts the image of a row at its own resolution; its draws depend on seed, task and row."""
    from fusionbench_lite.data.vision.corruptions import corrupt

    name = sources.corruption or ""

    def corrupted(image: Image, row: int) -> Image:
        stream = randomness.generator(sources.seed, task.name, row)
        return decoding.as_image(corrupt(decoding.rgb(image), name, sources.severity, stream))

    return corrupted


def _corruption_version() -> str:
    import scipy

    from fusionbench_lite.data.vision import corruptions

    return f"{file_sha256(Path(corruptions.__file__))} numpy {np.__version__} scipy {scipy.__version__}"


def _checked(task: Task, split: Split, name: str) -> Split:
    """Return a split whose size, labels and class order are the task's; raises InputError naming both values."""
    if split.exact:
        sizes = (task.train,) if name == "train" else task.test_sizes
        if len(split.labels) not in sizes:
            raise InputError(
                f"task {task.name!r}: {split.where} has {len(split.labels):,} images, but {' or '.join(f'{n:,}' for n in sizes)} "
                "are expected: complete the files, or name another source"
            )
        absent = np.setdiff1d(np.arange(task.classes), split.labels)
        if absent.size:
            raise InputError(f"task {task.name!r}: {split.where} has no image of class {int(absent[0])}: take the published files")
    if len(split.encoded) != len(split.labels):
        raise InputError(f"task {task.name!r}: {split.where} has {len(split.encoded)} images and {len(split.labels)} labels")
    if task.compare_order:
        from fusionbench_lite.models.text_heads import check_order

        check_order(task.name, task.variant, split.classes)
    return split


def _size_caveats(task: Task, split: Split) -> tuple[str, ...]:
    if split.exact or len(split.labels) in task.test_sizes:
        return ()
    return (
        f"{task.name}: {split.where} has {len(split.labels):,} test images, the published split {task.test:,}; accuracies are not "
        "comparable with published ones.",
    )


def _corruption_caveats(sources: Sources) -> tuple[str, ...]:
    if not _is_generated(sources):
        return ()
    return (
        f"{sources.corruption} was generated here (severity {sources.severity}, seed {sources.seed}); published results use images "
        "that were corrupted without a seed and stored as JPEG.",
    )


def _modes_caveats(task: Task, split: Split, decoded: Decoded, rows: Rows) -> tuple[str, ...]:
    if split.exact:  # published results have the same images, read in the same way
        return ()
    return modes.notes(task.name, decoded.index.traits(rows), lambda place: split.encoded.name(int(rows[place])))


def _left_out(task: Task, split: Split, rows: Rows) -> tuple[str, ...]:
    if not rows.size:
        return ()
    names = ", ".join(split.encoded.name(row) for row in rows.tolist())
    return (f"{task.name}: {rows.size} test images could not be decoded and were left out: {names}.",)
