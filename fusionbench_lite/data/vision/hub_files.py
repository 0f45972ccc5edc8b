"""The splits of a dataset repository: which files they are, fetched one by one, and their rows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench_lite import hub
from fusionbench_lite.data.vision.cache import Report
from fusionbench_lite.data.vision.encoded import Encoded, Split, checked_labels
from fusionbench_lite.data.vision.packed import Parquet, Tar, parquet_labels
from fusionbench_lite.data.vision.tasks import CORRUPTIONS, Hub, Task
from fusionbench_lite.errors import InputError

if TYPE_CHECKING:
    from fusionbench_lite.hub import Entry

_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]+)?\.parquet")


class HubSource:
    """The files of a task on the hub."""

    exact = True

    def __init__(self, task: Task, cache: Path, report: Report | None = None) -> None:
        if task.hub is None:
            raise InputError(_no_repository(task))
        self.task, self.hub, self.cache, self.report = task, task.hub, cache, report

    def has(self, split: str) -> bool:
        """Say whether the repository holds a split, by what is known of it."""
        return split not in CORRUPTIONS or self.hub.corrupted

    def entries(self, split: str) -> list[Entry]:
        """Return the files of a split in order; raises InputError where there are none or not all."""
        listing = hub.tree(self.hub.repo, kind="dataset", cache=self.cache)
        name = {"train": self.hub.train, "test": self.hub.test}.get(split, split)
        chosen = _tars(listing, self.hub, name) if self.hub.format == "tar" else _parquets(listing, self.hub, name)
        if not chosen:
            there = ", ".join(entry.path for entry in listing[:5]) or "nothing"
            raise InputError(f"dataset {self.hub.repo} has no files of split {name!r} (it holds {there}, ...): name another source")
        return chosen

    def fingerprint(self, split: str) -> str:
        """Return a hash of names, sizes and checksums of the files of a split, without fetching them."""
        listed = [(entry.path, entry.size, entry.sha256) for entry in self.entries(split)]
        return hashlib.sha256(repr((self.hub.repo, listed)).encode()).hexdigest()

    def split(self, split: str) -> Split:
        """Fetch the files of a split and return it; raises InputError naming repository and file."""
        fetched = [
            hub.fetch(
                self.hub.repo, entry.path, kind="dataset", cache=self.cache, sha256=entry.sha256, size=entry.size,
                report=self.report,
            )
            for entry in self.entries(split)
        ]
        paths = [entry.path for entry in fetched]
        where = f"dataset {self.hub.repo}, split {split}"
        images: Encoded
        if self.hub.format == "tar":
            images = tar = Tar(paths, self.hub.image, self.hub.label)
            raw, classes = tar.labels, None
        else:
            raw, classes = parquet_labels(paths, self.hub.label, self.hub.boolean)
            images = Parquet(paths, self.hub.image)
        if classes is not None and len(classes) != self.task.classes:
            raise InputError(f"{where} names {len(classes)} classes, but the task has {self.task.classes}: name another source")
        content = hashlib.sha256(repr([(entry.file, entry.sha256) for entry in fetched]).encode()).hexdigest()
        files = tuple((f"{entry.repo}@{entry.commit or 'unknown'}:{entry.file}", entry.sha256) for entry in fetched)
        return Split(
            where=where, encoded=images, labels=checked_labels(raw, self.task.classes, where), classes=classes, identity=content,
            fingerprint=self.fingerprint(split), files=files,
        )


def _parquets(listing: Sequence[Entry], source: Hub, split: str) -> list[Entry]:
    """Return the numbered files of a split: those of the folder that is named, else of the only one that has any."""
    folders: dict[str, dict[int, Entry]] = {}
    counts: dict[str, int] = {}
    for entry in listing:
        folder, _, base = entry.path.rpartition("/")
        match = _SHARD.fullmatch(base)
        if match and match["split"] == split:
            other = folders.setdefault(folder, {}).setdefault(int(match["number"]), entry)
            if other is not entry or counts.setdefault(folder, int(match["count"])) != int(match["count"]):
                raise InputError(
                    f"dataset {source.repo} has {entry.path} beside {next(iter(folders[folder].values())).path}, of another "
                    f"version of split {split!r}: put the images below data_dir"
                )
    folder = source.folder if source.folder in folders or len(folders) != 1 else next(iter(folders))
    if folder not in folders:
        if folders:
            raise InputError(f"dataset {source.repo} has split {split!r} in {', '.join(folders)}, not in {source.folder}: name one")
        return []
    missing = next((number for number in range(counts[folder]) if number not in folders[folder]), None)
    if missing is not None:
        raise InputError(
            f"dataset {source.repo}: file {missing + 1} of {counts[folder]} of split {split!r} is missing in {folder!r}: "
            "list the repository again with a network, or fetch the file"
        )
    return [folders[folder][number] for number in range(counts[folder])]


def _tars(listing: Sequence[Entry], source: Hub, split: str) -> list[Entry]:
    folder = f"{source.folder}/{split}/".lstrip("/")
    tars = [entry for entry in listing if entry.path.startswith(folder) and entry.path.endswith(".tar")]
    return sorted(tars, key=lambda entry: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", entry.path)])


def _no_repository(task: Task) -> str:
    local = task.local
    how = (
        f"put torchvision's files below data_dir (datasets.{local.reader}(data_dir, download=True) with "
        f"{', '.join(f'{key}={value!r}' for key, value in local.splits['test'][0].items())})"
        if local is not None and local.kind == "torchvision" else f"put them into data_dir/{task.name}/train and .../test"
    )
    return f"no repository of the hub holds the images of task {task.name!r} in the variant {task.variant!r}: {how}"
