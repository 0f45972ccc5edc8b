"""Which files of a class folder are images, and what is said of the others."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from fusionbench_lite.data.signatures import head_of, image_format
from fusionbench_lite.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
_RARER = (
    ".avif", ".heic", ".heif", ".hif", ".jfif", ".jpe", ".mpo", ".jp2", ".j2k", ".jpf", ".jpx", ".jxl", ".apng", ".pbm", ".pnm",
    ".dib", ".tga", ".pcx", ".qoi", ".svg", ".dcm", ".exr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2",
)
"""Suffixes of images too, whether Pillow reads them or not: what it does not read is an image that cannot be decoded."""
_SYSTEM = frozenset({
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
})
"""What operating systems, storage servers and archivers leave in folders, in lower case."""


@dataclasses.dataclass(frozen=True)
class ClassFiles:
    """The image files of a class folder in order, and its other files that are no system's."""

    images: list[Path]
    others: list[Path]


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is hidden, or one that a system leaves behind."""
    return name.startswith(".") or name.lower() in _SYSTEM


def is_image(name: str) -> bool:
    """Say whether a file is an image by its name."""
    return not is_hidden(name) and name.lower().endswith((*SUFFIXES, *_RARER))


def class_folders(folder: Path) -> tuple[list[str], list[Path]]:
    """Return the class folders of a split, sorted, and the files that lie beside them.

    Raises InputError where the split cannot be read, or where two class folders are one folder through a link.
    """
    entries = [entry for entry in _entries(folder) if not is_hidden(entry.name)]
    folders = [entry for entry in entries if _is_folder(entry)]
    if any(entry.is_symlink() for entry in folders):
        seen: dict[Path, str] = {}
        for entry in folders:
            other = seen.setdefault(Path(entry.path).resolve(), entry.name)
            if other != entry.name:
                raise InputError(
                    f"{folder}: class folders {other!r} and {entry.name!r} are one folder through a link, so that its images would "
                    "be of two classes: put the images of each class into a folder of its own"
                )
    return [entry.name for entry in folders], [Path(entry.path) for entry in entries if not _is_folder(entry)]


def class_files(folder: Path) -> ClassFiles:
    """Return the files of a class folder.

    Raises InputError where it cannot be read, and for a folder in it that has images: whether these are images of the class, copies
    or something else, nothing says.
    """
    images: list[Path] = []
    others: list[Path] = []
    for entry in _entries(folder):
        if is_hidden(entry.name):
            continue
        if _is_folder(entry):
            _refuse_nested(folder, Path(entry.path))
        else:
            (images if is_image(entry.name) else others).append(Path(entry.path))
    return ClassFiles(images, others)


def no_image(folder: Path, others: Sequence[Path]) -> InputError:
    """Return the error for a class folder without an image."""
    unnamed = next((path for path in others if image_format(head_of(path))), None)
    if unnamed is not None:
        hint = f"{unnamed.name} begins like {image_format(head_of(unnamed))}: give the files their suffix"
    else:
        hint = f"it has {others[0].name}: put its images there" if others else "put its images there"
    return InputError(f"class folder {folder} holds no image ({', '.join(SUFFIXES)}, ...); {hint}")


def notes(task: str, folder: Path, images: Sequence[Path], others: Sequence[Path], beside: Sequence[Path]) -> tuple[str, ...]:
    """Return what a reader of results has to know of the files of a split, as sentences.

    `others` lie in class folders and are no images by name, `beside` lie beside the class folders.
    """
    said = []
    unnamed = [path for path in others if image_format(head_of(path))]
    plain = sorted(set(others) - set(unnamed))
    if unnamed:
        said.append(
            f"{task}: {len(unnamed)} files in {folder} begin like images but have no suffix of one (first: {unnamed[0]}, "
            f"{image_format(head_of(unnamed[0]))}) and were left out."
        )
    if plain:
        said.append(f"{task}: {len(plain)} files in {folder} are no images and were left out (first: {plain[0]}).")
    loose = [path for path in beside if is_image(path.name)]
    if loose:
        said.append(f"{task}: {len(loose)} images beside the class folders of {folder} were left out (first: {loose[0].name}).")
    return (*said, *_linked_twice(task, images))


def _linked_twice(task: str, images: Iterable[Path]) -> tuple[str, ...]:
    """Return the sentence for files that count more than once through links.

    They are not refused: stores of data by content hold equal images as links to one file.
    """
    images = list(images)
    linked = {path for path in images if path.is_symlink()}
    if not linked:
        return ()
    resolved = functools.cache(Path.resolve)
    seen: dict[Path, Path] = {}
    twice = []
    for path in images:
        other = seen.setdefault(path.resolve() if path in linked else resolved(path.parent) / path.name, path)
        if other is not path:
            twice.append((path, other))
    if not twice:
        return ()
    return (f"{task}: {len(twice)} images are links to files that count already (first: {twice[0][0]}, which is {twice[0][1]}).",)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}; put a folder with images there") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder or a link to one; a link to itself, of which is_dir() raises, is none."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir())


def _refuse_nested(folder: Path, inner: Path) -> None:
    for base, folders, names in os.walk(inner):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        image = next((name for name in sorted(names) if is_image(name)), None)
        if image is not None:
            link, fix = (" link to a", "remove it") if inner.is_symlink() else ("", f"move its images into {folder}, or it away")
            raise InputError(f"{inner} is a{link} folder with images inside a class folder (first: {Path(base) / image}): {fix}")
