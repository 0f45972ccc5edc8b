"""Which text tasks there are, and what they need."""

from __future__ import annotations

from pathlib import Path

from fusionbench_lite import hub
from fusionbench_lite.base.needs import Need
from fusionbench_lite.data.text import descriptions, glue, own
from fusionbench_lite.data.text.protocols import Protocol
from fusionbench_lite.errors import InputError

_TRAINING = "read by methods with training examples only"


def names(data_dir: Path | None = None) -> tuple[str, ...]:
    """Return the tasks that can be asked for: those of a folder first, then GLUE's."""
    folder = own.names(data_dir) if data_dir is not None else ()
    return tuple(dict.fromkeys((*folder, *descriptions.glue_names())))


def inventory(name: str, protocol: Protocol, cache: Path, data_dir: Path | None = None) -> list[Need]:
    """Return what a run on this task needs: test texts and training texts. Nothing is fetched, and no hub is asked."""
    if own.reads(name, data_dir):
        return _own(name, data_dir) if data_dir is not None else []
    if name not in descriptions.glue_names():
        raise InputError(f"text task {name!r} is neither in data_dir nor one of GLUE: choose one of {', '.join(names(data_dir))}")
    split = protocol.splits.get(name, glue.TEST)
    return [_published(name, split, "test texts", "", cache), _published(name, glue.TRAIN, "training texts", _TRAINING, cache)]


def _own(name: str, folder: Path) -> list[Need]:
    own.description(name, folder)  # a run would refuse it only when other files have been fetched
    test, train = own.test_file(name, folder), own.train_file(name, folder)
    files = [("test texts", test, ""), *([("training texts", train, _TRAINING)] if train is not None else [])]
    return [
        Need(what=what, task=name, where=str(folder), path=str(file), nbytes=file.stat().st_size, present=True, note=note)
        for what, file, note in files
    ]


def _published(name: str, split: str, what: str, note: str, cache: Path) -> Need:
    path = glue.usual_path(name, split)
    found = hub.present(glue.REPO, path, kind="dataset", cache=cache)
    return Need(
        what=what, task=name, where=f"{glue.REPO}:{path}", path=str(found.path if found else cache / "hub"),
        nbytes=found.path.stat().st_size if found else None, present=found is not None, note=note,
    )
