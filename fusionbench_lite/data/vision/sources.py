"""Where the images of a task come from: the user's files, published archives below data_dir, or a published source.

That is a repository of the hub or, for a task that none holds, an archive on another server.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Protocol

from fusionbench_lite.data.vision import tasks
from fusionbench_lite.data.vision.archive import PublishedArchive
from fusionbench_lite.data.vision.cache import Report
from fusionbench_lite.data.vision.encoded import Split
from fusionbench_lite.data.vision.folders import ArchiveSource, FolderSource
from fusionbench_lite.data.vision.hub_files import HubSource
from fusionbench_lite.data.vision.published_folders import PublishedFolder
from fusionbench_lite.data.vision.tasks import CORRUPTIONS, Task
from fusionbench_lite.errors import InputError
from fusionbench_lite.fields import REQUIRED, choice, integer, verify

log = logging.getLogger(__name__)

SOURCES = ("auto", "hub", "folder")
CORRUPTION_SOURCES = ("splits", "generated")
_SPLITS = CORRUPTION_SOURCES[0]
MOST_SEVERE = 5


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where images come from and what is done with them.

    `variant`: "tall" or "fusionbench". `cache`: the cache folder. `data_dir`: the user's own data. `source`: "auto" looks there
    first and then for the published source, "hub" and "folder" look in one place only: the published source is the hub or, for a
    task that it does not have, the archive that the table names. `skip_corrupt`: so many images that cannot be decoded
    are left out. `corruption`: test images are those of the published corrupted split (`corruption_from="splits"`) or are made
    from the clean ones (`"generated"`, of this `severity`, from `seed`). `limit`: so many test images, evenly spaced.
    `tasks_file` replaces the packaged table of tasks by one of the same form.
    """

    variant: str = choice(REQUIRED, tasks.VARIANTS)
    cache: Path = dataclasses.field(default=REQUIRED)
    data_dir: Path | None = None
    source: str = choice("auto", SOURCES)
    skip_corrupt: int = integer(0, low=0)
    corruption: str | None = choice(None, CORRUPTIONS, optional=True)
    corruption_from: str = choice(_SPLITS, CORRUPTION_SOURCES)
    severity: int = integer(MOST_SEVERE, low=1, high=MOST_SEVERE)
    seed: int = 0
    limit: int | None = integer(None, low=1, optional=True)
    tasks_file: Path | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot be."""
        verify(self, where="data.")
        self._check_used()
        if self.source == "folder" and self.data_dir is None:
            raise InputError("data.source=folder, but no data_dir is given: set data_dir=...")

    def _check_used(self) -> None:
        """Raise InputError for settings of a corruption that nothing would read."""
        if self.corruption is None and self.corruption_from != _SPLITS:
            raise InputError(
                f"data.corruption_from={self.corruption_from} names no corruption: add data.corruption={CORRUPTIONS[0]} or another "
                "one, or leave it out"
            )
        if self.severity != MOST_SEVERE and (self.corruption is None or self.corruption_from == _SPLITS):
            missing = [] if self.corruption is not None else [f"data.corruption={CORRUPTIONS[0]} or another"]
            missing += ["data.corruption_from=generated"] if self.corruption_from == _SPLITS else []
            raise InputError(
                f"data.severity={self.severity} is that of corruptions that are generated here: add {' and '.join(missing)}, or "
                "leave it out"
            )

    @property
    def split(self) -> str:
        """The split that test images are taken from."""
        return self.corruption if self.corruption is not None and self.corruption_from == _SPLITS else "test"


class ImageSource(Protocol):
    """Splits of one task from one place. `exact`: they are the published ones, of the sizes in the table."""

    exact: bool

    def has(self, split: str) -> bool:
        """Say whether a split can be had here."""
        ...

    def fingerprint(self, split: str) -> str:
        """Return a hash that changes with the content of a split; nothing is fetched for it."""
        ...

    def split(self, split: str) -> Split:
        """Return a split; raises InputError."""
        ...


def find(task: Task, sources: Sources, split: str, report: Report | None = None) -> ImageSource:
    """Return the first source that has a split of a task; raises InputError that says where it was looked for."""
    local = local_source(task, sources, split)
    if local is not None:
        return local
    if split in CORRUPTIONS and (task.hub is None or not task.hub.corrupted):
        corrupted = [name for name in tasks.names(sources.tasks_file) if _has_corrupted(name, sources)]
        raise InputError(
            f"task {task.name!r} has no published split {split!r} (only {', '.join(corrupted)} have): "
            "set data.corruption_from=generated"
        )
    if sources.source == "folder":
        raise InputError(f"task {task.name!r} has no {split} images below {sources.data_dir}: put {_wanted(task, split)} there")
    if task.archive is not None and task.local is not None:
        return PublishedArchive(task, task.archive, task.local, sources.cache, report)
    return HubSource(task, sources.cache, report)


def local_source(task: Task, sources: Sources, split: str) -> ImageSource | None:
    """Return the first source below data_dir that has a split, None without one."""
    folder = sources.data_dir
    if folder is None or sources.source == "hub":
        return None
    if not folder.is_dir():
        raise InputError(f"data_dir {folder} is no folder: name one that is there")
    if any((folder / f"{task.name}{suffix}").exists() for suffix in (".npz", ".json")) and split in ("train", "test"):
        return ArchiveSource(task, folder)
    candidates: list[ImageSource] = [FolderSource(task, folder)]
    if task.local is not None:
        candidates += [PublishedFolder(task, task.local, root) for root in (folder, folder / task.name)]
    chosen = next((source for source in candidates if source.has(split)), None)
    if chosen is None and (folder / task.name).is_dir():
        log.warning("%s is not a layout that is known: put %s there", folder / task.name, _wanted(task, split))
    return chosen


def _has_corrupted(name: str, sources: Sources) -> bool:
    hub = tasks.task(name, sources.variant, sources.tasks_file).hub
    return hub is not None and hub.corrupted


def _wanted(task: Task, split: str) -> str:
    ways = [f"{task.name}/{split}/CLASS/images"]
    if split in ("train", "test"):
        ways.append(f"{task.name}.npz with {task.name}.json")
        if task.local is not None:
            ways.append(("torchvision's " if task.local.kind == "torchvision" else "") + task.local.at[split])
    return " or ".join(ways)
