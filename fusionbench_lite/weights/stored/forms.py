"""The stored forms of a model that lie in one folder, and which of them is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from fusionbench_lite.errors import MergeError
from fusionbench_lite.weights.stored.indexes import SUFFIX, check_index, missing_parts, part_of, read_index, stem_of

_FIRST = "model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """One stored form: `name` for messages, `files`, the `index` with `places`, `lacks` for what is missing, a `rank`.

    `words` say what it is. The lower rank is taken.
    """

    name: str
    files: tuple[Path, ...]
    index: Path | None = None
    lacks: str = ""
    rank: int = 0
    places: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def stem(self) -> str:
        """What the form is called before numbers and suffix."""
        return stem_of((self.index or self.files[0]).name)

    @property
    def words(self) -> str:
        """What the form is: "a model in one file, model.safetensors", "a model in 3 shards with an index"."""
        if len(self.files) == 1:
            return f"a model in one file, {self.files[0].name}"
        return f"a model in {len(self.files)} shards {'with' if self.index else 'without'} an index"


def chosen(folder: Path, files: list[str], indexes: list[str], present: list[str]) -> tuple[Form, tuple[str, ...]]:
    """Return the form to read of a folder and the names of the files that are not read.

    `files` and `indexes` are the candidates, `present` all names of the folder. Raises MergeError: shards that are missing,
    an index that is wrong, two forms of which neither comes first.
    """
    forms = _listed(folder, indexes, present)
    claimed = {file.name for form in forms for file in form.files}
    forms += _unlisted(folder, [name for name in files if name not in claimed])
    forms.sort(key=lambda form: form.rank)
    best = [form for form in forms if form.rank == forms[0].rank]
    complete = _plain([form for form in best if not form.lacks])
    if len(complete) > 1:
        first, second = complete[:2]
        raise MergeError(
            f"{folder} holds two models, {first.name} and {second.name}, and neither comes first: {_way_out(folder, first, second)}"
        )
    form = complete[0] if complete else best[0]
    if form.index is not None:
        form = read_form(folder, form.index, present, _instead(folder, forms))
    elif form.lacks:
        raise MergeError(f"{folder} lacks {form.lacks}: fetch it{_instead(folder, forms)}")
    mine = {file.name for file in form.files} | ({form.index.name} if form.index else set())
    return form, tuple(name for name in (*indexes, *files) if name not in mine)


def read_form(folder: Path, index: Path, present: list[str], instead: str = "") -> Form:
    """Return the model that an index lists. Raises MergeError for one that cannot be read or does not fit its folder."""
    places = read_index(index)
    names = dict.fromkeys(places.values())
    check_index(index, names, present, instead)
    return Form(name=index.name, files=tuple(folder / name for name in names), index=index, places=places)


def _listed(folder: Path, indexes: list[str], present: list[str]) -> list[Form]:
    """Return a form for every index; one that cannot be read has no files, and is read again where it is chosen."""
    forms = []
    for name in indexes:
        try:
            names: Mapping[str, None] = dict.fromkeys(read_index(folder / name).values())
        except MergeError:
            names = {}
        gone = [file for file in names if file not in present]
        rank = min([_rank(name, True), *(_rank(file, False) for file in names)])
        lacks = (gone or missing_parts(names) or [""])[0] if names else name
        forms.append(Form(name=name, files=tuple(folder / file for file in names), index=folder / name, lacks=lacks, rank=rank))
    return forms


def _unlisted(folder: Path, files: list[str]) -> list[Form]:
    """Return the forms of files that no index lists: single ones, and sets by the numbers in their names."""
    sets: dict[str, list[str]] = {}
    for name in files:
        part = part_of(name)
        sets.setdefault(f"{part.family}\0" if part else name, []).append(name)
    forms = []
    for names in sets.values():
        lacks = missing_parts(names)
        gone = ", ".join(lacks[:2]) + (f" and {len(lacks) - 2} more" if len(lacks) > 2 else "")
        if lacks:
            gone += f" ({len(names)} of {len(names) + len(lacks)} parts are there)"
        title = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        rank = _rank(names[0], False)
        forms.append(Form(name=title, files=tuple(folder / name for name in names), lacks=gone, rank=rank))
    return forms


def _plain(forms: list[Form]) -> list[Form]:
    """Return the form of which all others are variants by their names (a.fp16 of a), where there is one; else all."""
    for form in forms:
        if all(other.stem.startswith(f"{form.stem}.") for other in forms if other is not form):
            return [form]
    return forms


def _rank(name: str, index: bool) -> int:
    stem = stem_of(name)
    if stem == _FIRST:
        return 0 if index else 1
    return 2 if index else 3 if stem.startswith(_FIRST) else 4


def _instead(folder: Path, forms: list[Form]) -> str:
    """Return the end of a message that names the complete forms beside a broken one, "" where there are none."""
    for form in forms:
        if not form.lacks and len(form.files) == 1:
            return f", or give {form.index or form.files[0]} alone"
        if not form.lacks and form.index is not None:
            return f", or give {form.index} alone"
    return ""


def _way_out(folder: Path, first: Form, second: Form) -> str:
    ways = [str(form.index or form.files[0]) for form in (first, second) if form.index or len(form.files) == 1]
    fix = f"give {' or '.join(ways)}" if len(ways) == 2 else "keep one of them in the folder"
    if first.rank >= 3 and len(first.files) == len(second.files) == 1:
        stem = f"{_FIRST}-00001-of-00002{SUFFIX}"
        fix += f"; parts of one model are read together when they are called {stem} and so on"
    return fix
