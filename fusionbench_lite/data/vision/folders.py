"""The user's own images: NAME.npz with NAME.json, or a folder per split with a folder per class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fusionbench_lite.data import files, layouts
from fusionbench_lite.data.vision import class_files
from fusionbench_lite.data.vision.class_order import check_labels, ordered
from fusionbench_lite.data.vision.encoded import Arrays, Files, Split, checked_labels, identities
from fusionbench_lite.data.vision.tasks import Task
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import file_sha256


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
        check_labels(path, classes, self.task)
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        encoded = Arrays(len(images), lambda row: images[row], f"{path.name} {split}_images")
        content = self.fingerprint(split)
        return Split(
            where=f"{path}, {split}", encoded=encoded, labels=labels, classes=classes, identity=content, fingerprint=content,
            files=((path.name, content.split()[0]),), exact=False,
            notes=layouts.unused_classes(self.task.name, classes, arrays["train_labels"], arrays["test_labels"]),
        )


class FolderSource:
    """NAME/SPLIT/CLASS/images. Classes are numbered by their names, see `class_order`."""

    def __init__(self, task: Task, data_dir: Path) -> None:
        self.task, self.folder = task, data_dir / task.name

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
        names, beside = self._class_folders(folder)
        classes = ordered(folder, names, self.task)
        paths, labels, others = [], [], []
        for number, name in enumerate(classes):
            found = class_files.class_files(folder / name)
            if not found.images:
                raise class_files.no_image(folder / name, found.others)
            paths += found.images
            labels += [number] * len(found.images)
            others += found.others
        numbers = checked_labels(np.array(labels), self.task.classes, str(folder))
        identity, fingerprint = identities(folder, paths, numbers, classes)
        notes = class_files.notes(self.task.name, folder, paths, others, beside)
        return Split(
            where=str(folder), encoded=Files(paths), labels=numbers, classes=None, identity=identity, fingerprint=fingerprint,
            exact=False, notes=notes,
        )

    def classes(self, split: str) -> tuple[str, ...]:
        """Return the class folders of a split in the order of the labels; raises InputError where they do not give one."""
        folder = self.folder / split
        return ordered(folder, self._class_folders(folder)[0], self.task)

    def _class_folders(self, folder: Path) -> tuple[list[str], list[Path]]:
        if not folder.is_dir():
            raise InputError(f"{folder} is missing: put a folder per class there")
        return class_files.class_folders(folder)


def class_names(task: Task) -> list[tuple[str, ...]]:
    """Return lists of class names in the order of the labels: the prompts of the task's variant, others, the dataset's own."""
    content = json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))[task.prompts]
    variants = content.get("variants", {})
    prompted = variants.get(task.variant, content)["classnames"]
    others = [entry["classnames"] for entry in (content, *variants.values()) if len(entry["classnames"]) == len(prompted)]
    return [tuple(prompted), *(tuple(names) for names in (*others, task.folders) if names and names != prompted)]
