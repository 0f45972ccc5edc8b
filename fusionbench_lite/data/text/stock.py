"""Which text tasks there are, and what they need."""

from __future__ import annotations

from pathlib import Path

from fusionbench_lite import hub
from fusionbench_lite.base.needs import Need
from fusionbench_lite.data.text import descriptions, drawn, glue, own
from fusionbench_lite.data.text.protocols import Protocol
from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.hub.settings import offline

_TRAINING = "read by methods with training examples only"


def names(data_dir: Path | None = None) -> tuple[str, ...]:
    """Return the tasks that can be asked for: those of a folder first, then GLUE's, then the drawn ones."""
    folder = own.names(data_dir) if data_dir is not None else ()
    return tuple(dict.fromkeys((*folder, *descriptions.glue_names(), *drawn.names())))


def inventory(name: str, protocol: Protocol, cache: Path, data_dir: Path | None = None) -> list[Need]:
    """Return what a run on this task needs: test texts and training texts; nothing for what is drawn.

    The hub is asked for the sizes of files where no list of them is in the cache; without a network they are unknown. Nothing is
    fetched. Raises InputError for an unknown task and for files that are there but not as they should be.
    """
    if data_dir is not None and own.reads(name, data_dir):
        return _own(name, data_dir)
    if name in descriptions.glue_names():
        test = protocol.splits.get(name, glue.TEST)
        tested = _published(name, test, "test texts", protocol.notes.get(name, ""), cache)
        return [*tested, *_published(name, glue.TRAIN, "training texts", _TRAINING, cache)]
    if name in drawn.names():
        return []
    raise unknown(name, data_dir)


def unknown(name: str, data_dir: Path | None) -> InputError:
    """Return the error for a task that is nowhere, with the nearest name."""
    where = f"is not in {data_dir}, no task of GLUE and not drawn" if data_dir else "is no task of GLUE and not drawn"
    return InputError(f"text task {name!r} {where}: {did_you_mean(name, names(data_dir))}")


def _own(name: str, folder: Path) -> list[Need]:
    own.description(name, folder)  # a run would refuse it only when other files have been fetched
    test, train = own.test_file(name, folder), own.train_file(name, folder)
    files = [("test texts", test, ""), *([("training texts", train, _TRAINING)] if train is not None else [])]
    return [
        Need(what=what, task=name, where=str(folder), path=str(file), nbytes=file.stat().st_size, present=True, note=note)
        for what, file, note in files
    ]


def _published(name: str, split: str, what: str, note: str, cache: Path) -> list[Need]:
    try:
        entries = glue.entries(name, split, cache)
    except InputError as error:
        unlisted = "its size is known with the hub" if offline() else str(error)
        note = "; ".join([unlisted, *([note] if note else [])])
        return [Need(what=what, task=name, where=glue.REPO, path=str(cache / "hub"), nbytes=None, present=False, note=note)]
    needs = []
    for entry in entries:
        found = hub.present(glue.REPO, entry.path, kind="dataset", cache=cache, sha256=entry.sha256, size=entry.size)
        arrived = 0 if found else hub.arrived(glue.REPO, entry.path, kind="dataset", cache=cache, sha256=entry.sha256)
        needs.append(Need(
            what=what, task=name, where=f"{glue.REPO}:{entry.path}", path=str(found.path if found else cache / "hub"),
            nbytes=entry.size, present=found is not None, note=note, arrived=min(arrived, entry.size or 0),
        ))
        note = ""
    return needs
