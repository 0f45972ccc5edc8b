"""Class names and templates of the vision tasks, and whether a data set's classes are in their order."""

from __future__ import annotations

import dataclasses
import functools
import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench_lite.errors import InputError, did_you_mean

VARIANTS = ("tall", "fusionbench")

_DATA = Path(__file__).resolve().parents[1] / "data" / "vision"

_KEYS = {
    "sun397": "SUN397", "stanford_cars": "Cars", "resisc45": "RESISC45", "eurosat": "EuroSAT", "svhn": "SVHN",
    "gtsrb": "GTSRB", "mnist": "MNIST", "dtd": "DTD", "stl10": "STL10", "oxford_iiit_pet": "OxfordIIITPet",
    "flowers102": "Flowers102", "cifar100": "CIFAR100", "pcam": "PCAM", "fer2013": "FER2013", "cifar10": "CIFAR10",
    "food101": "Food101", "fashion_mnist": "FashionMNIST", "rendered_sst2": "RenderedSST2", "emnist": "EMNIST",
    "kmnist": "KMNIST",
}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The class names of a task in the order of its head, the templates that hold them as `{c}`, and what to know of them."""

    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    note: str = ""


def prompts(task: str, variant: str) -> Prompts:
    """Return a task's prompts: those of TALL-masks and Task Arithmetic ("tall") or of FusionBench ("fusionbench").

    Raises InputError for an unknown task or variant.
    """
    if task not in _KEYS:
        raise InputError(f"no prompts for task {task!r}: {did_you_mean(str(task), _KEYS)}")
    if variant not in VARIANTS:
        raise InputError(f"unknown variant {variant!r} of prompts: {did_you_mean(str(variant), VARIANTS)}")
    entry = _read("prompts.json")[_KEYS[task]]
    chosen = entry.get("variants", {}).get(variant, entry)
    return Prompts(tuple(chosen["classnames"]), tuple(chosen["templates"]), entry.get("note", ""))


@functools.cache
def _read(name: str) -> dict[str, Any]:
    text = (_DATA / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        content: dict[str, Any] = json.loads(text)
    else:
        import yaml

        content = yaml.safe_load(text)
    return content


# ---------------------------------------------------------------- the order of the classes


def check_order(task: str, variant: str, names: Sequence[str] | None) -> str:
    """Compare a data set's class names, in the order of its labels, with the prompts': "checked" or "not comparable".

    Spellings that data sets are known to have count as the prompts' (class_names.yaml). At most one name may be unknown;
    it has the place that is left. Raises InputError where known names stand at other places, as those of folders do
    that are numbered and sorted as text, or where there are more or fewer than the head has rows.
    """
    rows = prompts(task, variant).classnames
    if names is None:
        return "not comparable"
    names = [str(name) for name in names]
    if len(names) != len(rows):
        raise InputError(
            f"{task} has {len(names)} classes, its {variant} prompts have {len(rows)}: choose the data set of the same variant"
        )
    accepted = spellings(task, variant)
    places_of = _numbered(names)
    if places_of is not None and not all(row.isdigit() for row in rows):
        _refuse_moved(task, variant, names, accepted, places_of)
        return "checked" if count_from(task, variant) == int(names[0]) else "not comparable"
    places = {spelling: place for place, spelt in enumerate(accepted) for spelling in map(plain, spelt)}
    places_of = [places.get(plain(name)) for name in names]
    unknown = places_of.count(None)
    if 2 * unknown > len(names):
        return "not comparable"
    _refuse_moved(task, variant, names, accepted, places_of)
    return "checked" if unknown <= 1 else "not comparable"


def spellings(task: str, variant: str) -> list[list[str]]:
    """Return, in the order of the labels, how each class of a task may be spelled; the first as the prompts have it."""
    entry: Mapping[str, Any] = _read("class_names.yaml").get(task, {})
    if "order" in entry:  # that of the prompts is another, on purpose
        return [list(names) for names in entry["order"]]
    classnames = prompts(task, variant).classnames
    of_variants = (prompts(task, name).classnames for name in VARIANTS)
    lists = [classnames, *(names for names in of_variants if len(names) == len(classnames))]
    if entry.get("initial"):
        lists.append(tuple(name[0] + name for name in classnames))
    together = [list(names) for names in zip(*lists, strict=True)]
    for names, also in zip(together, _of_variant(entry.get("also"), variant) or [[]] * len(classnames), strict=True):
        names.extend(also)
    return together


def count_from(task: str, variant: str) -> int | None:
    """Return the first of the numbers that a data set is published with for its classes, in the order of the labels; or None."""
    first: int | None = _of_variant(_read("class_names.yaml").get(task, {}).get("count_from"), variant)
    return first


def _of_variant(value: Any, variant: str) -> Any:
    return value.get(variant) if isinstance(value, dict) else value


def plain(name: str) -> str:
    """Return a name without what spellings differ in: case, spaces, punctuation, zeros before a number."""
    letters = "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter.isalnum())
    return str(int(letters)) if letters.isdecimal() else letters


def _numbered(names: Sequence[str]) -> list[int | None] | None:
    """Return the places that numbers as names stand for, 0 to C-1 or 1 to C in any order; None for other names."""
    if not all(name.isdecimal() for name in names):
        return None
    numbers = [int(name) for name in names]
    start = min(numbers)
    if start not in (0, 1) or sorted(numbers) != list(range(start, start + len(names))):
        return None
    return [number - start for number in numbers]


def _refuse_moved(
    task: str, variant: str, names: Sequence[str], spellings: Sequence[Sequence[str]], places: Sequence[int | None]
) -> None:
    """Raise InputError for the first class of a data set that is known and stands at another place."""
    for label, place in enumerate(places):
        if place is not None and place != label:
            raise InputError(
                f"{task}: label {label} of the data set is {names[label]!r}, which belongs to label {place} "
                f"({spellings[place][0]!r}) for the {variant} heads, whose label {label} is {spellings[label][0]!r}: renumber the "
                "data set's labels in that order"
            )
