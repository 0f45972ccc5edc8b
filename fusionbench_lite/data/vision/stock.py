"""What a task's images need: downloads, folders, and room for the decoded squares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fusionbench_lite import hub
from fusionbench_lite.base.needs import Need
from fusionbench_lite.data.vision import decoding, tasks
from fusionbench_lite.data.vision.archive import PublishedArchive
from fusionbench_lite.data.vision.folders import FolderSource
from fusionbench_lite.data.vision.hub_files import HubSource
from fusionbench_lite.data.vision.index import DECODED, Index
from fusionbench_lite.data.vision.sources import Sources, find, local_source
from fusionbench_lite.data.vision.tasks import Task
from fusionbench_lite.errors import InputError
from fusionbench_lite.hub import web
from fusionbench_lite.hub.settings import offline as hub_offline

_WHAT = {"train": "training images"}


def inventory(task: str, sources: Sources, size: int = decoding.SIZE, trained: int | None = 0) -> list[Need]:
    """Return what a run on this task needs: test images, training images, and the decoded squares of those that it reads.

    `trained` is how many training images the run reads, None where it may be all of them.

    The hub is asked for the sizes of files where no list of them is in the cache; without a network they are unknown. Nothing
    is fetched. Raises InputError for an unknown task and for files that are there but not as they should be.
    """
    entry = tasks.task(task, sources.variant, sources.tasks_file)
    count = min(sources.limit or entry.test, entry.test)
    items = [
        *_split(entry, sources, sources.split), *_split(entry, sources, "train"),
        _decoded(entry, sources, sources.split, count, size),
    ]
    if trained is None or trained:
        count = entry.train if trained is None else min(trained, entry.train)
        items.append(_decoded(entry, sources, "train", count, size, "" if trained is not None else "at most: those that are read"))
    return items


def _decoded(task: Task, sources: Sources, split: str, count: int, size: int, note: str = "") -> Need:
    """Return the room for the squares of `count` images of a split."""
    folders = sources.cache / "images"
    published = (task.train,) if split == "train" else task.test_sizes
    sizes = published if local_source(task, sources, split) is None else ()
    here = any(_complete(path, count, sizes) for path in sorted(folders.glob(f"{task.name}-{split}-*")))
    what = f"decoded {_what(split)}"
    return Need(
        what=what, task=task.name, where="made from them on first use", path=str(folders), nbytes=count * size * size * 3,
        present=here, note=note, made=True,
    )


def _what(split: str) -> str:
    return _WHAT.get(split, "test images" if split == "test" else f"test images with {split}")


def _split(task: Task, sources: Sources, split: str) -> list[Need]:
    note = "" if split != "train" else "read by methods with training or held-out images only"
    local = local_source(task, sources, split)
    if isinstance(local, FolderSource):
        local.classes(split)  # a run would refuse them only when other files have been fetched
    if local is not None:
        return [Need(
            what=_what(split), task=task.name, where=str(sources.data_dir), path=str(sources.data_dir), nbytes=None, present=True,
            note=note,
        )]
    try:
        place = find(task, sources, split)
    except InputError as error:
        where = str(sources.data_dir) if sources.data_dir is not None else "data_dir"
        return [Need(
            what=_what(split), task=task.name, where=str(error), path=where, nbytes=None, present=False, note=note,
            downloadable=False,
        )]
    if isinstance(place, PublishedArchive):
        return [_archived(place, split, note)]
    if not isinstance(place, HubSource):
        raise InputError(f"task {task.name!r}: {type(place).__name__} is neither below data_dir nor on the hub")
    try:
        entries = place.entries(split)
    except InputError as error:
        note = "; ".join(["its size is known with the hub" if hub_offline() else str(error), *([note] if note else [])])
        return [Need(
            what=_what(split), task=task.name, where=place.hub.repo, path=str(sources.cache / "hub"), nbytes=None, present=False,
            note=note,
        )]
    items = []
    for entry in entries:
        fetched = hub.present(place.hub.repo, entry.path, kind="dataset", cache=sources.cache, sha256=entry.sha256, size=entry.size)
        path = str(fetched.path if fetched else sources.cache / "hub")
        arrived = 0
        if not fetched:
            arrived = hub.arrived(place.hub.repo, entry.path, kind="dataset", cache=sources.cache, sha256=entry.sha256)
        items.append(Need(
            what=_what(split), task=task.name, where=f"{place.hub.repo}:{entry.path}", path=path, nbytes=entry.size,
            present=fetched is not None, note=note, arrived=min(arrived, entry.size or 0),
        ))
        note = ""
    return items


def _archived(place: PublishedArchive, split: str, note: str) -> Need:
    """Return what is to be done for a split of an archive: it is fetched once, whole, with the test images."""
    what, name, url = _what(split), place.task.name, place.archive.url
    if place.present() is not None:
        size = sum(member.size for member in place.members[split])
        return Need(what=what, task=name, where=url, path=str(place.root), nbytes=size, present=True, note=note)
    path = web.place(place.file, place.cache)
    if split == "train":  # hashing the archive once, for the test images, is enough
        return Need(
            what=what, task=name, where=url, path=str(path), nbytes=0, present=path.is_file(),
            note=f"in the archive of the test images; {note}",
        )
    packed = web.present(place.file, place.cache) is not None
    about = place.archive.about
    arrived = 0 if packed else min(web.arrived(place.file, place.cache), about)
    note = "to be unpacked" if packed else "one archive of both splits, of about this size"
    return Need(what=what, task=name, where=url, path=str(path), nbytes=about, present=packed, note=note, arrived=arrived)


def _complete(folder: Path, count: int, sizes: tuple[int, ...]) -> bool:
    """Say whether a decoded cache, of a split of one of these sizes where any are given, holds `count` images or all there are."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        index = Index(folder / "index", int(about["images"]))
        index.refresh(index.count)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return False
    if sizes and index.count not in sizes:
        return False
    return int((index.states(np.arange(index.count)) >= DECODED).sum()) >= min(count, index.count)
