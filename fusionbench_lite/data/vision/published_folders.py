"""Published datasets as their archives unpack below data_dir: through torchvision, or by the lists that came with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.base.randomness import generator
from fusionbench_lite.data.vision.class_files import SUFFIXES, is_hidden
from fusionbench_lite.data.vision.class_order import ordered
from fusionbench_lite.data.vision.encoded import Arrays, Encoded, Files, Split, checked_labels, identities
from fusionbench_lite.data.vision.tasks import Local, Task, unpacked_names
from fusionbench_lite.errors import InputError

_EUROSAT_HELD = 270
"""Images per class of EuroSAT's test split, and as many of its validation split."""

Found = tuple[list[Path], NDArray[np.int64]]


class PublishedFolder:
    """A task in the layout of its published archive, below `root`."""

    exact = True

    def __init__(self, task: Task, local: Local, root: Path) -> None:
        self.task, self.local, self.root = task, local, root

    def has(self, split: str) -> bool:
        """Say whether what marks this split is there."""
        return split in self.local.at and (self.root / self.local.at[split]).exists()

    def fingerprint(self, split: str) -> str:
        """Return a hash of names and sizes of the files and of the labels."""
        return self.split(split).fingerprint

    def split(self, split: str) -> Split:
        """Return a split; raises InputError where files are missing or damaged."""
        where = f"{self.root / self.local.at[split]}, {split}"
        images: Encoded
        if self.local.kind == "own":
            paths, raw = _READERS[self.local.reader](self.root / self.local.at[split], split, self.task)
            images, used, classes = Files(paths), paths, None
        else:
            images, raw, classes, used = _torchvision(self.task, self.local, self.root, split)
            used = self._own(used)
        labels = checked_labels(self._numbered(raw, where), self.task.classes, where)
        if classes is not None and len(classes) != self.task.classes:
            classes = None
        identity, fingerprint = identities(self.root, used, labels, self.task.name, split)
        notes = (self.local.note,) if self.local.note else ()
        return Split(
            where=where, encoded=images, labels=labels, classes=classes, identity=identity, fingerprint=fingerprint, notes=notes
        )

    def _own(self, paths: list[Path]) -> list[Path]:
        """Return the files that are the task's, by the names in its archive: other splits may lie in the same folder.

        So its files have one hash, whether they are below data_dir with all that torchvision unpacks or in the cache alone.
        """
        if self.task.archive is None:
            return paths
        names = set(unpacked_names(self.task.archive, self.local).values())
        return [path for path in paths if path.relative_to(self.root).as_posix() in names]

    def _numbered(self, raw: NDArray[Any], where: str) -> NDArray[Any]:
        if self.local.labels is None:
            return raw + self.local.offset
        table = np.array(self.local.labels)
        return table[checked_labels(raw, len(table), where)]


def _torchvision(
    task: Task, local: Local, root: Path, split: str
) -> tuple[Encoded, NDArray[Any], tuple[str, ...] | None, list[Path]]:
    """Return images, labels, class names and the files of a split that torchvision reads; nothing is downloaded."""
    import fusionbench_lite.base.torchvision_ops  # noqa: F401  (before torchvision)

    # isort: split
    from torchvision import datasets

    made = []
    for arguments in local.splits[split]:
        try:
            made.append(getattr(datasets, local.reader)(str(root), **arguments))
        except Exception as error:  # torchvision's readers raise whatever a missing or damaged file makes them stumble over
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"task {task.name!r}: torchvision's {local.reader} cannot read the files below {root} ({reason}): complete them, "
                "or set data.source=hub"
            ) from error
    labels = np.concatenate([_labels(dataset, root, split) for dataset in made])
    names = getattr(made[0], "classes", None)
    if any(getattr(dataset, "classes", None) != names for dataset in made):
        raise InputError(f"the lists of {local.reader} below {root} do not name the same classes: unpack the archive again")
    classes = tuple(map(str, names)) if names else None
    paths = [path for dataset in made for path in _paths(dataset)]
    if paths:
        return Files(paths), labels, classes, paths
    marked = root / local.at[split]
    used = sorted(path for path in marked.rglob("*") if path.is_file()) if marked.is_dir() else [marked]
    dataset = made[0]

    def image(row: int) -> Any:
        try:
            return dataset[row][0]
        except OSError as error:
            raise InputError(f"cannot read row {row} of {marked}: {error}; unpack the archive again") from error

    return Arrays(len(dataset), image, f"{marked.name} {split}"), labels, classes, used


def _paths(dataset: Any) -> list[Path]:
    """Return the files of the images, none where torchvision keeps the images in memory."""
    for field in ("_image_files", "_images", "_samples", "samples"):
        entries = getattr(dataset, field, None)
        if entries:
            first = [entry[0] if isinstance(entry, tuple) else entry for entry in entries]
            return [Path(entry) for entry in first] if isinstance(first[0], str | Path) else []
    return []


def _labels(dataset: Any, root: Path, split: str) -> NDArray[Any]:
    if type(dataset).__name__ == "PCAM":
        import h5py

        with h5py.File(root / "pcam" / dataset._FILES[split]["targets"][0]) as file:
            return np.asarray(file["y"]).reshape(-1).astype(np.int64)
    for field in ("targets", "_labels", "labels"):
        listed = getattr(dataset, field, None)
        if listed is not None:
            return np.asarray(listed)
    for field in ("_samples", "samples"):
        entries = getattr(dataset, field, None)
        if entries:
            labels = [label for _, label in entries]
            if None in labels:
                raise InputError(f"the files of {type(dataset).__name__} below {root} have no labels: put the complete ones there")
            return np.asarray(labels)
    raise InputError(f"this version of torchvision keeps the labels of {type(dataset).__name__} elsewhere: set data.source=hub")


def _sun397(folder: Path, split: str, task: Task) -> Found:
    """SUN397, official partition 1: lists of lines such as /a/abbey/sun_x.jpg, beside the folders or in Partitions/."""
    name = {"train": "Training_01.txt", "test": "Testing_01.txt"}[split]
    lines = _lines(folder, name, ("", "Partitions", ".."))
    paths = [folder / line.lstrip("/") for line in lines]
    names = ["/".join(path.relative_to(folder).parts[1:-1]) for path in paths]
    classes = ordered(folder, sorted(set(names)), task)
    number = {name: place for place, name in enumerate(classes)}
    return paths, np.array([number[name] for name in names])


def _resisc45(folder: Path, split: str, task: Task) -> Found:
    """NWPU-RESISC45: a folder per class, and lists of file names such as airplane_001.jpg beside it or inside it."""
    lines = _lines(folder, f"resisc45-{split}.txt", ("", ".."))
    names = [line.rpartition("_")[0] for line in lines]
    paths = [folder / name / line for name, line in zip(names, lines, strict=True)]
    classes = ordered(folder, sorted(set(names)), task)
    number = {name: place for place, name in enumerate(classes)}
    return paths, np.array([number[name] for name in names])


def _eurosat(folder: Path, split: str, task: Task) -> Found:
    """EuroSAT: 270 images of each class for the test split and 270 for validation, drawn with a seed; the others train."""
    folders = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    classes = ordered(folder, folders, task)
    paths: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        there = (path for path in (folder / name).iterdir() if not is_hidden(path.name))
        files = sorted(path for path in there if path.suffix.lower() in SUFFIXES)
        order = generator("eurosat", "split", name).permutation(len(files))
        rows = order[:_EUROSAT_HELD] if split == "test" else order[2 * _EUROSAT_HELD :]
        paths += [files[row] for row in sorted(rows.tolist())]
        labels += [number] * len(rows)
    return paths, np.array(labels, np.int64)


def _lines(folder: Path, name: str, places: Sequence[str]) -> list[str]:
    for place in places:
        path = folder / place / name
        if path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            return [line for line in lines if line]
    raise InputError(f"{name} is neither in {folder} nor beside it: put the published list of the split there")


_READERS: dict[str, Callable[[Path, str, Task], Found]] = {"sun397": _sun397, "resisc45": _resisc45, "eurosat": _eurosat}
