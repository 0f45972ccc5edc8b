"""One export, from top to bottom: the record is found, its model remade, written, loaded again, compared, and put in its place."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from fusionbench_lite.base.needs import size_text
from fusionbench_lite.base.progress import Progress
from fusionbench_lite.errors import InputError
from fusionbench_lite.exporting import card, proving
from fusionbench_lite.exporting.asked import Asked
from fusionbench_lite.exporting.forms import WEIGHTS, Form, forms
from fusionbench_lite.exporting.layouts import Layout, layout_of
from fusionbench_lite.exporting.proving import Compared
from fusionbench_lite.exporting.remaking import Remade, remade
from fusionbench_lite.housekeeping import chosen
from fusionbench_lite.paths import atomic_directory, expanded, nearest_existing
from fusionbench_lite.tables import records
from fusionbench_lite.tables.records import Record
from fusionbench_lite.weights.outputs import check_tasks, checked_out


def export(asked: Asked) -> int:
    """Write the model of a record and return the exit status: 1 where predictions differ, and nothing is left then.

    Raises InputError for what cannot be, before anything is written.
    """
    try:
        out, found = _export(asked)
    except Differing as error:
        print("\n".join(map(str, error.found)))
        other = [one for one in error.found if not one.same]
        missed = sum(one.examples - one.equal for one in other)
        print(f"nothing is written: {missed:,} predictions on {len(other)} tasks are not the record's", file=sys.stderr)
        return 1
    for one in found:
        print(one)
    trial = f", on the first {asked.limit:,} examples of every task alone (TRIAL)" if asked.limit is not None else ""
    said = f": its predictions are the record's{trial}" if asked.verify else ", not compared (verify=false)"
    print(f"exported to {out}{said}")
    return 0


def _export(asked: Asked) -> tuple[Path, list[Compared]]:
    record = find(asked)
    out = empty_folder(asked.out, record.path)
    with Progress() as progress:
        made = remade(record, asked.select, asked.cache_dir, progress)
        written = forms(made, compact=asked.compact)
        first = next(iter(written.values()))()
        layout = layout_of(made, asked.layout, first.kind == WEIGHTS, progress)
        folders = list(written) if None not in written else list(made.plan.tasks) if layout.per_task else [None]
        if folders != [None]:
            check_tasks(folders, out)
        check_space(out, first, len(folders))
        with atomic_directory(out) as temporary:
            found: list[Compared] = []
            for number, task in enumerate(folders):
                progress(f"exporting {made.plan.method}", number, len(folders))
                form = first if None in written or number == 0 else written[task]()
                tasks = made.plan.tasks if task is None else (task,)
                found += _folder(asked, made, layout, form, tasks, temporary if task is None else temporary / task)
            if not all(one.same for one in found):
                raise Differing(found)
            card.write(temporary, made, layout, first.kind, [task for task in folders if task is not None], found, asked, out.name)
            empty_folder(asked.out, record.path)  # still, whoever else may have written there
    return out, found


class Differing(Exception):
    """A written model that predicts something else than the record."""

    def __init__(self, found: list[Compared]) -> None:
        super().__init__()
        self.found = found


def _folder(
    asked: Asked, made: Remade, layout: Layout, form: Form, tasks: tuple[str, ...], folder: Path
) -> list[Compared]:
    """Write one folder and compare what it holds."""
    folder.mkdir(exist_ok=True)
    layout.write(made, form, tasks, folder)
    if not asked.verify:
        return []
    return list(proving.compared(made.record, made.rule, made.suite, layout.load(made, tasks, folder), asked.limit))


def find(asked: Asked) -> Record:
    """Return the record that is asked for, whole. Raises InputError where there is none, or it is not whole."""
    path = expanded(asked.record)
    name = str(path.resolve()) if path.is_dir() else asked.record  # links followed: a record is known by its folder's name
    one = chosen.by_name(expanded(asked.results_dir), name)
    if one.record is None:
        raise InputError(f"{one.path} is no whole record: {one.flaw}")
    return records.read(one.path)


def empty_folder(given: str, record: Path) -> Path:
    """Return the folder to write. Raises InputError where it is there and not empty, is a file, or lies among what is read."""
    out = checked_out(given, {"the record": record})
    if out.exists() and not out.is_dir():
        raise InputError(f"out={given} is a file: give a new folder")
    try:
        there = next(out.iterdir(), None) if out.is_dir() else None
    except OSError as error:
        raise InputError(f"out={given} cannot be looked into ({error.strerror}): give a new folder") from error
    if there is not None:
        raise InputError(f"out={given} is not empty ({there.name}): give a new folder")
    return out


def check_space(out: Path, form: Form, folders: int) -> None:
    """Raise InputError where the file system has less space than the tensors take."""
    size = folders * sum(tensor.nbytes for part in (form.weights, form.parts) for tensor in part.values())
    free = shutil.disk_usage(nearest_existing(out)).free
    if size > free:
        raise InputError(
            f"out={out} needs {size_text(size)} and {size_text(free)} are free there: give another folder, or make room"
        )
