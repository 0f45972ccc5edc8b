"""The user's own images: NAME.npz with NAME.json, or a folder per split with a folder per class."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fusionbench_lite.data import files
from fusionbench_lite.data.vision.encoded import Arrays, Files, Split, checked_labels, identities
from fusionbench_lite.data.vision.tasks import Task
from fusionbench_lite.errors import InputError, nearest
from fusionbench_lite.paths import file_sha256

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
_SHOWN = 3


class ArchiveSource:
    """NAME.npz and NAME.json: images uint8 [N, H, W, 3] of any size."""

    def __init__(self, task: Task, data_dir: Path) -> None:
        self.task, self.folder = task, data_dir

    exact = False

    def has(self, split: str) -> bool:
        """Say whether the archive has a split: train and test, no other."""
        return split in ("train", "test")

    def fingerprint(self, split: str) -> str:
        """Return the hash of the archive and the split."""
        return f"{file_sha256(self.folder / f'{self.task.name}.npz')} {split}"

    def split(self, split: str) -> Split:
        """Return a split; raises InputError naming the file and the fix."""
        classes, arrays = files.read(self.folder, self.task.name, size=None)
        path = self.folder / f"{self.task.name}.npz"
        if len(classes) != self.task.classes:
            absent = sorted(set(class_names(self.task)[0]) - set(classes)) if self.task.compare_order else []
            fix = f"add {absent[0]!r}" if len(absent) < self.task.classes and absent else "take the files of this task"
            raise InputError(
                f"{path}: there are {len(classes)} classes, but task {self.task.name!r} has {self.task.classes}: {fix}"
            )
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        encoded = Arrays(len(images), lambda row: images[row], f"{path.name} {split}_images")
        content = self.fingerprint(split)
        # Names that are no more than numbers say nothing of their order.
        return Split(
            f"{path}, {split}", encoded, labels, classes, content, content, ((path.name, content.split()[0]),), exact=False
        )


class FolderSource:
    """NAME/SPLIT/CLASS/images. Classes are numbered as in the prompts where the names are theirs, else alphabetically."""

    def __init__(self, task: Task, data_dir: Path) -> None:
        self.task, self.folder = task, data_dir / task.name
        self.prompts = class_names(task) if task.compare_order else []

    exact = False

    def has(self, split: str) -> bool:
        """Say whether there is a folder of this split."""
        return (self.folder / split).is_dir()

    def fingerprint(self, split: str) -> str:
        """Return a hash of names and sizes of the files and their labels."""
        return self.split(split).fingerprint

    def split(self, split: str) -> Split:
        """Return a split; raises InputError for a missing, unknown or empty class folder, by its name."""
        folder = self.folder / split
        classes, matched = ordered(folder, self._class_folders(folder), self.prompts, self.task.classes, self.task.name)
        if not matched:
            self._compare(folder, classes)
        paths, labels, others = [], [], 0
        for number, name in enumerate(classes):
            images, rest = _images(folder / name)
            if not images:
                raise InputError(f"class folder {folder / name} holds no image ({', '.join(SUFFIXES)}): put its images there")
            paths += images
            labels += [number] * len(images)
            others += rest
        numbers = checked_labels(np.array(labels), self.task.classes, str(folder))
        identity, fingerprint = identities(folder, paths, numbers, classes)
        notes = (f"{self.task.name}: {others} files in {folder} are no images and were left out.",) if others else ()
        names = None if matched else classes
        return Split(str(folder), Files(paths), numbers, names, identity, fingerprint, exact=False, notes=notes)

    def _class_folders(self, folder: Path) -> list[str]:
        if not folder.is_dir():
            raise InputError(f"{folder} is missing: put a folder per class there")
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))

    def _compare(self, folder: Path, classes: tuple[str, ...]) -> None:
        """Name the class folders that one split has and another has not."""
        for other in sorted(self.folder.iterdir()):
            if other.is_dir() and other != folder and not other.name.startswith("."):
                theirs = self._class_folders(other)
                difference = sorted(set(classes) ^ set(theirs))
                if theirs and difference:
                    here, there = (folder, other) if difference[0] in classes else (other, folder)
                    raise InputError(f"class folder {difference[0]!r} is in {here} but not in {there}: add it, or remove it there")


def ordered(
    folder: Path, found: Sequence[str], prompts: Sequence[Sequence[str]], classes: int, task: str
) -> tuple[tuple[str, ...], bool]:
    """Return the class folders in the order of the labels, and whether names of `prompts` gave it.

    `prompts` are lists of names of the same classes. Names are compared without case, signs and numbers in front. Raises
    InputError where their number is not that of the classes or only most of the names are known, naming those that are missing
    or unknown.
    """
    nearest_match: tuple[list[str], list[str]] | None = None
    for names in prompts:
        for key in (_folded, _without_number):
            wanted, theirs = [key(name) for name in names], {key(name): name for name in found}
            if len(set(wanted)) < len(names) or len(theirs) < len(found):
                continue
            if set(wanted) == set(theirs):
                return tuple(theirs[name] for name in wanted), True
            missing = [name for name, folded in zip(names, wanted, strict=True) if folded not in theirs]
            if nearest_match is None or len(missing) < len(nearest_match[0]):
                nearest_match = missing, [name for folded, name in theirs.items() if folded not in wanted]
    if nearest_match is not None and 2 * len(nearest_match[0]) < classes:
        _refuse(folder, *nearest_match, task)
    if len(found) != classes:
        shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        raise InputError(f"{folder} has {len(found)} class folders ({shown}), but task {task!r} has {classes} classes: add some")
    return tuple(found), False


def _refuse(folder: Path, missing: list[str], extra: list[str], task: str) -> None:
    if missing:
        match = nearest(missing[0], extra)
        hint = f" (is it {match!r}?)" if match else ""
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"class folder {missing[0]!r}{more} of task {task!r} is missing in {folder}{hint}: add it")
    raise InputError(f"{folder / extra[0]} is no class of task {task!r}: move it away")


def _without_number(name: str) -> str:
    return _folded(re.sub(r"^\d+\W*", "", name))


def _folded(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _images(folder: Path) -> tuple[list[Path], int]:
    """Return the image files of a class folder and below, sorted, and the number of other files that are not hidden."""
    images, others = [], 0
    for base, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in folders:
            _refuse_loop(Path(base) / name)
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                images.append(Path(base) / name)
            elif not name.startswith("."):
                others += 1
    return images, others


def _refuse_loop(folder: Path) -> None:
    """Raise InputError for a link to a folder above itself, below which the images of other classes would count as this one's."""
    if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} is a link to {folder.resolve()}, a folder above it, whose images would count again: remove it")


def class_names(task: Task) -> list[tuple[str, ...]]:
    """Return lists of class names in the order of the labels: the prompts of the task's variant, others, the dataset's own."""
    content = json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))[task.prompts]
    variants = content.get("variants", {})
    own = variants.get(task.variant, content)["classnames"]
    others = [entry["classnames"] for entry in (content, *variants.values()) if len(entry["classnames"]) == len(own)]
    return [tuple(own), *(tuple(names) for names in (*others, task.folders) if names and names != own)]
