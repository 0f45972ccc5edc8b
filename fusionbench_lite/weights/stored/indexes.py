"""Models in several files: the numbers in the files' names, and the index of the Hugging Face hub beside them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from fusionbench_lite.errors import MergeError, nearest
from fusionbench_lite.weights.stored.contents import dangling, fault_of, first_line

INDEX = "model.safetensors.index.json"
SUFFIX = ".safetensors"
_INDEX = re.compile(r"(?P<stem>.+?)\.safetensors\.index(?P<variant>\.[^.]+)?\.json", re.IGNORECASE)
_PART = re.compile(r"(?P<stem>.*?)[-_. ]*(?P<number>\d+)[-_ ]?of[-_ ]?(?P<total>\d+)(?P<rest>.*)\.safetensors", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of several, as its name tells: `family` is the name of the set, `number` of `total` this one."""

    family: str
    number: int
    total: int
    name: str

    def sibling(self, number: int) -> str:
        """Return the name of another part of the set."""
        match = _PART.fullmatch(self.name)
        assert match is not None
        start, end = match.span("number")
        return f"{self.name[:start]}{number:0{end - start}d}{self.name[end:]}"


def part_of(name: str) -> Part | None:
    """Return what a name such as model-00002-of-00003.safetensors tells; None for the whole of a model."""
    match = _PART.fullmatch(name)
    if match is None or int(match["total"]) < 2 or int(match["number"]) > int(match["total"]):
        return None
    family = f"{match['stem']}{match['rest']} of {int(match['total'])}"
    return Part(family, int(match["number"]), int(match["total"]), name)


def stem_of(name: str) -> str:
    """Return what a file of weights or an index is called before numbers, variant and suffix: "model", "consolidated"."""
    match = _INDEX.fullmatch(name) or _PART.fullmatch(name)
    if match is None:
        return name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name
    return match["stem"] + (match.groupdict().get("variant") or match.groupdict().get("rest") or "")


def is_index(name: str) -> bool:
    """Say whether a file is called like an index."""
    return _INDEX.fullmatch(name) is not None


def missing_parts(names: Iterable[str]) -> list[str]:
    """Return the names that the numbers of the given ones ask for and that are not among them. Sets may start at 0."""
    sets: dict[str, dict[int, Part]] = {}
    for name in names:
        part = part_of(name)
        if part is not None:
            sets.setdefault(part.family, {})[part.number] = part
    missing = []
    for parts in sets.values():
        some = next(iter(parts.values()))
        first = 0 if 0 in parts else 1
        missing += [some.sibling(number) for number in range(first, first + some.total) if number not in parts]
    return missing


def read_index(index: Path) -> dict[str, str]:
    """Return {tensor: file name} of an index; names like ./a and .\\a are taken as a, every encoding of JSON is read.

    Raises MergeError for an index that cannot be read, and for places outside its own folder.
    """
    fault = dangling(index)
    if fault is None:
        try:
            places = _map_of(json.loads(index.read_bytes()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            fault = fault_of(index) if isinstance(error, ValueError) else None
            if fault is None or fault.startswith("it is text"):
                fault = f"{first_line(error)}: it is no index of tensors (weight_map): fetch it again"
    if fault is not None:
        raise MergeError(f"cannot read {index}: {fault}")
    return {tensor: _plain(index, place) for tensor, place in places.items()}


def _map_of(content: dict[str, dict[str, str]]) -> dict[str, str]:
    places = dict(content["weight_map"].items())
    if not places:
        raise ValueError("weight_map is empty")
    for place in places.values():
        if not isinstance(place, str):
            raise TypeError(f"weight_map has {place!r} in the place of a file name")
    return places


def _plain(index: Path, place: str) -> str:
    # By its name: in the cache of the Hugging Face hub the files are links to elsewhere.
    name = re.sub(r"^(\.[\\/])+", "", place)
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise MergeError(f"{index} lists {place!r} outside its own directory: the index is not to be trusted")
    return name


def check_index(index: Path, names: Collection[str], present: Collection[str], instead: str) -> None:
    """Refuse an index whose files are not all there; `instead` ends the message where another form of the model is.

    `names` are the files that it lists, `present` those of its folder. Raises MergeError.
    """
    for name in names:
        if name not in present:
            likely = None if part_of(name) else nearest(name, [other for other in present if other.lower().endswith(SUFFIX)])
            near = f" (did you mean {likely!r}?)" if likely else ""
            raise MergeError(f"{index} lists {name!r}, which is missing{near}: fetch it{instead}")
    lacks = missing_parts(names)
    if lacks:
        there = "is there" if lacks[0] in present else "is missing"
        raise MergeError(f"{index} lists parts of a set without {lacks[0]!r}, which {there}: fetch index and files again")


def check_places(index: Path, places: dict[str, str], held: dict[str, Path]) -> None:
    """Refuse an index that says of a tensor what the files do not. Raises MergeError naming the first such tensor."""
    for tensor, name in places.items():
        if tensor not in held or held[tensor].name != name:
            raise MergeError(f"{index} lists {tensor!r} in {name!r}, which does not hold it: fetch both again")
    for tensor, file in held.items():
        if tensor not in places:
            names = set(places.values())
            whole = not missing_parts(names) and all(part_of(name) for name in names)
            fix = f"remove {index.name} to have all tensors of the shards read" if whole else f"list it in {index.name}"
            raise MergeError(f"{index} does not list {tensor!r}, which {file.name!r} holds: fetch both again, or {fix}")
