"""The families of experts as data: repositories, paths, sizes, hashes and what to know about them."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fusionbench_lite.errors import InputError, did_you_mean

PACKAGED = ("ta", "tall", "fusionbench")
FAMILIES = (*PACKAGED, "ta_tall", "own")
"""`ta_tall` takes from Task Arithmetic what it has and the rest from TALL-masks, as AdaRank does; `own` is a folder."""

PRETRAINED, HEADS, MULTITASK = "pretrained.safetensors", "heads.safetensors", "traditional_mtl.safetensors"
EXPERT = "individual-{task}.safetensors"
"""The files of checkpoints=own."""


@dataclasses.dataclass(frozen=True)
class Published:
    """What a publisher tells of a file: bytes, and SHA-256 or its beginning."""

    size: int | None = None
    sha256: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A repository, or one per task, with the patterns of its files; `head` is None where it has none."""

    repo: str
    expert: str
    head: str | None = None
    models: tuple[str, ...] = ()
    files: Mapping[str, Published] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Base:
    """The repository of a pretrained model and its files in the order in which they are tried."""

    repo: str
    files: tuple[str, ...]
    about: int | None = None
    published: Mapping[str, Published] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Caveat:
    """A sentence about the experts of these tasks; of all where there are none."""

    text: str
    tasks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A family file. `archs` are the names of models in paths, `about` the bytes of an expert, `tasks` the names in paths.

    `base` tells which library's whole model the pretrained file is: "open_clip" or "transformers"; for the latter the
    experts have the tower alone. `pretrained` are patterns of its files in a local folder.
    """

    family: str
    title: str
    layout: str
    base: str
    variant: str
    archs: Mapping[str, str]
    about: Mapping[str, int]
    tasks: Mapping[str, str]
    places: tuple[Place, ...]
    pretrained: tuple[str, ...]
    bases: Mapping[str, Base]
    elsewhere: str
    caveats: tuple[Caveat, ...]
    path: Path

    @property
    def frozen_projection(self) -> bool:
        """Whether the projection is the base's and not merged."""
        return self.base == "transformers"

    def places_of(self, model: str) -> tuple[Place, ...]:
        """Return the places that have experts of a model."""
        return tuple(place for place in self.places if not place.models or model in place.models)

    def fill(self, pattern: str, model: str, task: str | None = None) -> str:
        """Return a pattern with the family's names of the model and the task put in."""
        return pattern.format(arch=self.archs[model], task=self.tasks[task] if task is not None else "")


def family_of(name: str, manifest: Path | None = None) -> Family:
    """Return a packaged family, or the one of a manifest: a file that says `family: NAME`, or a folder of NAME.yaml.

    Raises InputError for an unknown name and for a file that is not of the form.
    """
    if name not in PACKAGED:
        raise InputError(f"unknown family of checkpoints {name!r}: {did_you_mean(name, FAMILIES)}")
    path = Path(__file__).with_name(f"{name}.yaml")
    if manifest is None:
        return _read(path, name)
    if manifest.is_dir():
        replacement = manifest / f"{name}.yaml"
        return _read(replacement if replacement.is_file() else path, name)
    if not manifest.is_file():
        raise InputError(f"checkpoints.manifest {manifest} does not exist: give a file of the form of {path} or a folder of them")
    said = _content(manifest).get("family")
    if said not in PACKAGED:
        raise InputError(f"{manifest}: family is {said!r}, which is none of {', '.join(PACKAGED)}")
    return _read(manifest if said == name else path, name)


def check(name: str, model: str, tasks: tuple[str, ...], manifest: Path | None = None) -> dict[str, Family]:
    """Return {task: the family that its expert is from}, none for "own". Raises InputError for what no file can mend.

    That is an unknown family, a model or a task that the family does not have, no task at all.
    """
    if name not in FAMILIES:
        raise InputError(f"unknown family of checkpoints {name!r}: {did_you_mean(name, FAMILIES)}")
    if not tasks:
        raise InputError("checkpoints of no task were asked for: give at least one task")
    if name == "own":
        return {}
    families = [family_of(part, manifest) for part in (("ta", "tall") if name == "ta_tall" else (name,))]
    for family in families:
        if model in family.archs and (model not in family.bases or not family.places_of(model)):
            lacking = "place of experts" if model in family.bases else "base"
            raise InputError(f"{family.path} names no {lacking} of {model!r}: add it under {lacking.split()[0]}s")
        if model not in family.archs:
            raise InputError(
                f"checkpoints={name} has no experts of model {model!r} ({family.path.name}): {did_you_mean(model, family.archs)}"
            )
    owners = {}
    for task in tasks:
        owner = next((family for family in families if task in family.tasks), None)
        if owner is None:
            raise InputError(_no_task(name, task, families))
        owners[task] = owner
    return owners


def _no_task(name: str, task: str, families: list[Family]) -> str:
    tasks = [name for family in families for name in family.tasks]
    others = [other for other in PACKAGED if other != name and task in family_of(other).tasks]
    if others:
        suggestion = "ta_tall or tall" if "tall" in others and name == "ta" else " or ".join(others)
        return (
            f"checkpoints={name} has no expert of {task!r} (it has {len(tasks)} tasks: {', '.join(tasks)}): use "
            f"checkpoints={suggestion}"
        )
    return f"checkpoints={name} has no expert of {task!r}: {did_you_mean(task, tasks)}; checkpoints=own reads a folder of yours"


def caveats(families: Mapping[str, Family]) -> tuple[str, ...]:
    """Return the sentences that belong to tasks taken from their families."""
    sentences = [
        caveat.text for family in dict.fromkeys(families.values()) for caveat in family.caveats
        if not caveat.tasks or any(families.get(task) is family for task in caveat.tasks)
    ]
    return tuple(dict.fromkeys(" ".join(sentence.split()) for sentence in sentences))


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping like that of {Path(__file__).with_name('ta.yaml')}")
    return content


def _read(path: Path, name: str) -> Family:
    content = _content(path)
    fields = {field.name for field in dataclasses.fields(Family)} - {"path", "archs", "about"} | {"models"}
    for key in content:
        if key not in fields:
            raise InputError(f"{path}: unknown key {key!r}: {did_you_mean(str(key), fields)}")
    try:
        family = _family(content, path)
        for place in family.places:
            for pattern in (place.repo, place.expert, place.head or ""):
                for _, field, _, _ in string.Formatter().parse(pattern):
                    if field not in (None, "arch", "task"):
                        raise ValueError(f"{pattern!r} holds {{{field}}}, where {{arch}} and {{task}} are filled in")
                pattern.format(arch="", task="")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is not of the form of a family file ({type(error).__name__}: {error})") from error
    if family.family != name:
        raise InputError(f"{path}: family is {family.family!r}, not {name!r}")
    if family.layout not in ("packed", "separate") or family.base not in ("open_clip", "transformers"):
        raise InputError(f"{path}: layout is packed or separate, base open_clip or transformers")
    return family


def _family(content: dict[str, Any], path: Path) -> Family:
    models = content["models"]
    return Family(
        family=content["family"], title=content["title"], layout=content["layout"], base=content["base"],
        variant=content["variant"], archs={model: str(entry["arch"]) for model, entry in models.items()},
        about={model: int(entry["about"]) for model, entry in models.items() if "about" in entry},
        tasks={str(task): str(name) for task, name in content["tasks"].items()},
        places=tuple(_place(entry) for entry in content["places"]), pretrained=_texts("pretrained", content),
        bases={model: _base(entry) for model, entry in content["bases"].items()},
        elsewhere=" ".join(str(content.get("elsewhere", "")).split()),
        caveats=tuple(Caveat(str(entry["text"]), tuple(entry.get("tasks", ()))) for entry in content.get("caveats", ())),
        path=path,
    )


def _place(entry: dict[str, Any]) -> Place:
    for key in ("repo", "expert"):
        if not isinstance(entry[key], str) or not entry[key]:
            raise ValueError(f"{key} of a place is a text, not {entry[key]!r}")
    return Place(
        repo=entry["repo"], expert=entry["expert"], head=entry.get("head"), models=_texts("models", entry),
        files=_files(entry.get("files", {})),
    )


def _base(entry: dict[str, Any]) -> Base:
    if not entry["files"]:
        raise ValueError(f"files of the base {entry['repo']} are none")
    return Base(entry["repo"], _texts("files", entry), entry.get("about"), _files(entry.get("known", {})))


def _texts(key: str, entry: dict[str, Any]) -> tuple[str, ...]:
    """Return a list of texts, which a single text is not: its letters would be taken for them."""
    texts = entry.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key} are a list of texts, not {texts!r}")
    return tuple(texts)


def _files(entries: dict[str, Any]) -> dict[str, Published]:
    files = {}
    for path, entry in entries.items():
        size, sha256 = entry.get("size"), entry.get("sha256")
        if (size is not None and type(size) is not int) or (sha256 is not None and not isinstance(sha256, str)):
            raise ValueError(f"{path}: size is a number of bytes, sha256 a text in quotes")
        files[str(path)] = Published(size, sha256.lower() if sha256 else None)
    return files
