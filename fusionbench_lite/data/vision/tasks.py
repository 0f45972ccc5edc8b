"""The 20 image tasks as data: classes, sizes, sources and caveats of each, per data variant (tasks.yaml)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fusionbench_lite.errors import InputError, did_you_mean
from fusionbench_lite.hub.web import WebFile, web_file

VARIANTS = ("tall", "fusionbench")
CORRUPTIONS = (
    "motion_blur", "impulse_noise", "gaussian_noise", "pixelate", "spatter", "contrast", "jpeg_compression",
)
_FILE = Path(__file__).with_name("tasks.yaml")


@dataclasses.dataclass(frozen=True)
class Hub:
    """A dataset repository: `folder` holds `<split>-*.parquet`, or folders of tar files where `format` is "tar".

    `train` and `test` name the splits, `image` and `label` the columns. `boolean`: labels are false and true. `corrupted`:
    there is a split per corruption.
    """

    repo: str
    folder: str = "data"
    format: str = "parquet"
    train: str = "train"
    test: str = "test"
    image: str = "image"
    label: str = "label"
    boolean: bool = False
    corrupted: bool = False


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published zip file at an address of the web whose members are gzipped idx files, for tasks that no repository holds.

    `about` is its size in bytes, to tell people; the MD5 decides. `image` is the shape of an image, `train` and `test` name the
    members with "images" and "labels" of the splits.
    """

    url: str
    md5: str
    about: int
    image: tuple[int, int]
    train: Mapping[str, str]
    test: Mapping[str, str]

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot be."""
        web_file(self.url, self.md5)
        shape = tuple(self.image) if isinstance(self.image, list | tuple) else ()
        object.__setattr__(self, "image", shape)
        for key, values, count in (("about", (self.about,), 1), ("image", shape, 2)):
            if len(values) != count or any(type(value) is not int or value < 1 for value in values):
                raise InputError(f"{key} of an archive takes {count} whole number{'s' * (count > 1)} of at least 1")
        for split in ("train", "test"):
            members = getattr(self, split)
            if not isinstance(members, Mapping) or set(members) != {"images", "labels"}:
                raise InputError(f"{split} of an archive takes the names of two members, images and labels")
        paths = [*self.train.values(), *self.test.values()]
        for member in paths:
            _check_member(member)
        if len({PurePosixPath(member).name for member in paths}) < len(paths):
            raise InputError(f"members of an archive have the same name: {', '.join(paths)}")

    @property
    def file(self) -> WebFile:
        """The archive as it is fetched."""
        return web_file(self.url, self.md5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local:
    """A published layout below data_dir: a torchvision class with arguments per split, or one of this package's readers.

    `at` names what marks its presence, per split; `labels` and `offset` turn the layout's label numbers into the task's. `note` is
    what a reader of results on it has to know, as a sentence.
    """

    kind: str
    reader: str
    at: Mapping[str, str]
    splits: Mapping[str, tuple[Mapping[str, Any], ...]]
    labels: tuple[int, ...] | None = None
    offset: int = 0
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One task in one data variant.

    `test_sizes` are the sizes of the test split that published results use; `folders` the dataset's own class names in the order
    of the labels, where they are not the prompts'; `compare_order`: class names may be compared with the prompts;
    `numbers_are_labels`: the data set's published numbers of the classes, if it has any, are in the order of the labels.
    """

    name: str
    variant: str
    prompts: str
    classes: int
    train: int
    test: int
    test_sizes: tuple[int, ...]
    hub: Hub | None
    local: Local | None
    compare_order: bool
    folders: tuple[str, ...]
    caveats: tuple[str, ...]
    archive: Archive | None = None
    numbers_are_labels: bool = True

    def size(self, split: str) -> int:
        """Return the number of images of a split; corrupted splits have as many as the test split."""
        return self.train if split == "train" else self.test


def names(file: Path | None = None) -> tuple[str, ...]:
    """Return the names of all tasks."""
    return tuple(_table(file or _FILE))


def task(name: str, variant: str, file: Path | None = None) -> Task:
    """Return a task in a data variant; `file` replaces tasks.yaml by one of the same form.

    Raises InputError for an unknown task or variant and for a file that is not of that form.
    """
    table = _table(file or _FILE)
    if name not in table:
        raise InputError(f"unknown image task {name!r}: {did_you_mean(name, table)}")
    if variant not in VARIANTS:
        raise InputError(f"unknown data variant {variant!r}: {did_you_mean(variant, VARIANTS)}")
    base = {key: value for key, value in table[name].items() if key not in VARIANTS}
    of_variant = table[name].get(variant) or {}
    entry = {**base, **of_variant, "caveats": [*base.get("caveats", ()), *of_variant.get("caveats", ())]}
    try:
        return _typed(name, variant, entry)
    except InputError as error:
        raise InputError(f"{file or _FILE}: task {name!r}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file or _FILE}: task {name!r} is incomplete or has a key too many ({error}): correct it") from error


def caveats(name: str, variant: str) -> tuple[str, ...]:
    """Return what a reader of results on this task has to know, as sentences."""
    return task(name, variant).caveats


def unpacked_names(archive: Archive, local: Local) -> dict[str, str]:
    """Return the members of an archive with their paths in the layout of torchvision's class."""
    return {
        member: f"{local.at[split]}/{PurePosixPath(member).name.removesuffix('.gz')}"
        for split in ("train", "test") for member in getattr(archive, split).values()
    }


def _check_member(member: object) -> None:
    pure = PurePosixPath(member) if isinstance(member, str) else PurePosixPath()
    plain = str(pure) == member and not pure.is_absolute() and ".." not in pure.parts and pure.name.removesuffix(".gz")
    if not plain or not pure.name.endswith(".gz") or any(letter in str(pure) for letter in "\\\0\n\r"):
        raise InputError(f"{member!r} is no member of an archive: write its path in it, with forward slashes, ending in .gz")


def _typed(name: str, variant: str, entry: Mapping[str, Any]) -> Task:
    hub, local = entry["hub"], entry["local"]
    archive = Archive(**entry["archive"]) if entry.get("archive") else None
    if archive is not None and hub:
        raise InputError("it has both hub and archive: keep one")
    if archive is not None and "class" not in (local or {}):
        raise InputError("archive is read by the class of torchvision that local names: name one")
    return Task(
        name=name, variant=variant, prompts=entry["prompts"], classes=entry["classes"], train=entry["train"], test=entry["test"],
        test_sizes=(entry["test"], *entry.get("also_test", ())), hub=Hub(**hub) if hub else None,
        local=_local(local) if local else None, compare_order=entry.get("order") != "free", folders=tuple(entry.get("folders", ())),
        caveats=tuple(" ".join(caveat.split()) for caveat in entry["caveats"]), archive=archive,
        numbers_are_labels=entry.get("numbers") != "other",
    )


def _local(entry: Mapping[str, Any]) -> Local:
    at = entry["at"]
    return Local(
        kind="own" if "reader" in entry else "torchvision", reader=entry.get("reader") or entry["class"],
        at={"train": at, "test": at} if isinstance(at, str) else at,
        splits={split: tuple(entry.get(split, ())) for split in ("train", "test")},
        labels=tuple(entry["labels"]) if "labels" in entry else None, offset=entry.get("offset", 0),
        note=" ".join(entry.get("note", "").split()),
    )


@functools.cache
def _table(file: Path) -> dict[str, dict[str, Any]]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{file} is not readable YAML ({str(error).splitlines()[0]}): correct it") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise InputError(f"{file}: one mapping per task is expected, as in {_FILE}")
    return content
