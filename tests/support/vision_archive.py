"""A small archive in the layout of the one that EMNIST is published as, and a table of tasks that names it."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from tests.support.vision_data import labels_of, picture, small_tasks

SIZES = {"train": 30, "test": 20}
SPLITS = ("digits", "letters", "byclass")
"""Splits of the published archive, of which a task reads one."""


def digits(split: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N, 28, 28], which are not symmetric, and labels uint8 [N] of the split `digits`."""
    labels = labels_of(count or SIZES[split], 10, split == "train")
    images = [picture(label, row + 1000 * (split == "train"), 0, (28, 28))[..., 0] for row, label in enumerate(labels)]
    return np.stack(images), np.array(labels, np.uint8)


def idx(array: np.ndarray) -> bytes:
    """Return the bytes of an idx file of an array of bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def name(split: str, kind: str, of: str = "digits") -> str:
    """Return the published name of a file without folder and ending; `kind` is "images" or "labels"."""
    return f"emnist-{of}-{split}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"


def raw_files(sizes: Mapping[str, int] = SIZES) -> dict[str, bytes]:
    """Return the four files of the digits by name."""
    content = {split: dict(zip(("images", "labels"), digits(split, sizes[split]), strict=True)) for split in ("train", "test")}
    return {name(split, kind): idx(array) for split, kinds in content.items() for kind, array in kinds.items()}


def members(sizes: Mapping[str, int] = SIZES) -> dict[str, bytes]:
    """Return the members of the archive by name: those of the digits, and others of every split."""
    kinds = [(split, kind) for split in ("train", "test") for kind in ("images", "labels")]
    files = {name(*which, of): b"not read" * 50 for of in SPLITS for which in kinds}
    files |= raw_files(sizes)
    return {f"gzip/{key}.gz": gzip.compress(content, mtime=0) for key, content in files.items()}


def zipped(content: Mapping[str, bytes]) -> bytes:
    """Return the bytes of a zip file, the same at any time of the day."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, member in content.items():
            archive.writestr(zipfile.ZipInfo(key), member, zipfile.ZIP_DEFLATED)
    return target.getvalue()


def table(path: Path, url: str, content: bytes, sizes: Mapping[str, tuple[int, int]] | None = None, **changes: object) -> Path:
    """Write a table of tasks whose digits come from this archive; `changes` replace fields of its entry."""
    small_tasks(path, sizes or {"emnist": (SIZES["train"], SIZES["test"])})
    entries = yaml.safe_load(path.read_text())
    own = {"url": url, "md5": hashlib.md5(content).hexdigest(), "about": len(content)}
    entries["emnist"]["tall"]["archive"] |= own | changes
    path.write_text(yaml.safe_dump(entries, sort_keys=False))
    return path


def write_data_dir(folder: Path, others: bool = True) -> Path:
    """Lay out what torchvision's class leaves below a data_dir: the files of every split and the archive."""
    raw = folder / "EMNIST/raw"
    raw.mkdir(parents=True)
    for key, content in raw_files().items():
        (raw / key).write_bytes(content)
    if others:
        (raw / "gzip.zip").write_bytes(zipped(members()))
        for kind in ("images", "labels"):
            (raw / name("train", kind, "letters")).write_bytes(b"not read")
    return folder
