"""Which label a class folder stands for: by a name that is known, or by its number. No other order is taken on trust."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from fusionbench_lite.data.vision.tasks import Task
from fusionbench_lite.errors import InputError, nearest
from fusionbench_lite.models.prompts import check_order, count_from, plain, spellings

_SHOWN = 3
_WORDS = 10
_LISTS = Path(__file__).parent
_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})", re.DOTALL)


def ordered(folder: Path, folders: Sequence[str], task: Task) -> tuple[str, ...]:
    """Return the class folders in the order of the labels.

    Their names are compared with the prompts' and with other known ones (class_names.yaml) without case, signs and numbers in
    front. Names that are all numbers, or a number after the same word, stand for the labels of these numbers. Raises InputError
    for names that are neither, for a number of folders that is not that of the classes, and where only most of the names are
    known, naming those that are missing or unknown.
    """
    accepted = _accepted_names(task)
    matches = ((*_matched(folders, accepted, key), key) for key in (plain, _without_number))
    missing, extra, labels, key = min(matches, key=lambda match: len(match[0]))
    if not missing and not extra:
        return tuple(sorted(folders, key=lambda name: labels[name]))
    if 2 * len(missing) < task.classes:
        _refuse_twins(folder, extra, {key(name): name for name in labels}, key)
        _refuse(folder, missing, extra, task.name)
    if len(folders) != task.classes:
        raise InputError(
            f"{folder} has {len(folders)} class folders ({_some(folders)}), but task {task.name!r} has {task.classes} classes: "
            f"{'add' if len(folders) < task.classes else 'remove'} some, or choose the data set of the same variant"
        )
    numbers = _numbers(folders)
    if numbers is None:
        raise _unknown(folder, "class folders", extra, task)
    _check_numbers(folder, "class folders", numbers, task)
    return tuple(name for _, name in sorted(zip(numbers, folders, strict=True)))


def check_labels(path: Path, names: Sequence[str], task: Task) -> None:
    """Check the class names of an archive, in the order of its labels; raises InputError where they cannot be those of the task."""
    if check_order(task.name, task.variant, names) == "checked":
        return
    numbers = _numbers(names)
    if numbers is None:
        missing, extra, labels = _matched(names, _accepted_names(task), _without_number)
        if not missing and not extra and all(labels[name] == label for label, name in enumerate(names)):
            return
        raise _unknown(path, "class names", _matched(names, _accepted_names(task), plain)[1], task)
    _check_numbers(path, "classes", numbers, task)
    moved = next((label for label, number in enumerate(numbers) if number != label + min(numbers)), None)
    if moved is not None:
        raise InputError(
            f"{path}: class {moved} is named {names[moved]!r}, the number of another label: sort the names by number, and renumber "
            "the labels with them"
        )


def _accepted_names(task: Task) -> list[list[str]]:
    """Return, in the order of the labels, how each class of a task may be spelled."""
    accepted = [list(names) for names in spellings(task.name, task.variant)]
    if len(task.folders) == len(accepted):
        accepted = [[*names, folder] for names, folder in zip(accepted, task.folders, strict=True)]
    return accepted


def _matched(
    folders: Sequence[str], accepted: Sequence[Sequence[str]], key: Callable[[str], str]
) -> tuple[list[str], list[str], dict[str, int]]:
    """Return classes that no folder names, folders that name no class or one that another folder names, and the others' labels."""
    places: dict[str, int] = {}
    doubtful = {""}
    for place, names in enumerate(accepted):
        for name in map(key, names):
            if places.setdefault(name, place) != place:
                doubtful.add(name)
    labels: dict[str, int] = {}
    extra: list[str] = []
    for name in folders:
        label = None if key(name) in doubtful else places.get(key(name))
        if label is None or label in labels.values():
            extra.append(name)
        else:
            labels[name] = label
    there = set(labels.values())
    return [names[0] for place, names in enumerate(accepted) if place not in there], extra, labels


def _numbers(names: Sequence[str]) -> list[int] | None:
    """Return the numbers in names that are no more than these, after one word at most that all have in common; None for others."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    if not all(matches) or len({match[1].casefold() for match in matches if match}) > 1:
        return None
    return [int(match[2]) for match in matches if match]


def _check_numbers(where: Path, what: str, numbers: Sequence[int], task: Task) -> None:
    """Raise InputError unless numbers are 0 to C-1, or 1 to C where the data set is published so."""
    last, first = task.classes - 1, count_from(task.name, task.variant)
    if not task.numbers_are_labels:
        raise InputError(
            f"{where}: the {what} of task {task.name!r} are numbers, but the data set's published numbers are not the labels used "
            f"here: give {what} the names {_words(task)}"
        )
    needed = f"0 to {last}" + (f", or 1 to {last + 1} as published," if first == 1 else "")
    if sorted(numbers) == list(range(1, last + 2)) and first != 1:
        raise InputError(
            f"{where}: the {what} of task {task.name!r} are numbered 1 to {last + 1}, which no published numbers of it are: "
            f"number them {needed} by label, or name them {_words(task)}"
        )
    if sorted(numbers) not in (list(range(last + 1)), list(range(1, last + 2))):
        start = min(min(numbers), 1) if first == 1 else 0
        missing = sorted(set(range(start, start + last + 1)) - set(numbers))
        absent = f"{missing[0]} is missing" if missing else f"they run from {min(numbers)} to {max(numbers)}"
        raise InputError(f"{where}: the {what} of task {task.name!r} have to be numbered {needed} but {absent}: correct the names")


def _unknown(where: Path, what: str, extra: Sequence[str], task: Task) -> InputError:
    """Return the error for names that say nothing of their order."""
    numbered = f", or number them 0 to {task.classes - 1} by label" if task.numbers_are_labels else ""
    return InputError(
        f"{where}: {len(extra)} of {task.classes} {what} ({_some(extra)}) are no known names of classes of task {task.name!r}, or "
        f"of one class twice, so that their order cannot be checked: name them {_words(task)} (prompts.json and class_names.yaml "
        f"in {_LISTS}){numbered}"
    )


def _words(task: Task) -> str:
    names = [names[0] for names in spellings(task.name, task.variant)]
    names = list(task.folders) or names
    return ", ".join(names) if len(names) <= _WORDS else _some(names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _refuse_twins(folder: Path, extra: list[str], there: dict[str, str], key: Callable[[str], str]) -> None:
    """Raise InputError for a folder whose name is that of another one but for case, signs and zeros in front, as 3 and 03."""
    twin = next((name for name in extra if key(name) in there), None)
    if twin is not None:
        raise InputError(
            f"class folders {there[key(twin)]!r} and {twin!r} in {folder} stand for one class: put the images of both into one"
        )


def _refuse(folder: Path, missing: list[str], extra: list[str], task: str) -> None:
    if missing:
        match = nearest(missing[0], extra)
        hint = f" (is it {match!r}?)" if match else ""
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        fix = "rename it, or add the other" if match else "add it"
        raise InputError(f"class folder {missing[0]!r}{more} of task {task!r} is missing in {folder}{hint}: {fix}")
    raise InputError(f"{folder / extra[0]} is no class of task {task!r}, or one that is there: move it away")


def _without_number(name: str) -> str:
    return plain(re.sub(r"^\d+\W*", "", name))
