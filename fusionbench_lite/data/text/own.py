"""A user's own text tasks: NAME.train.jsonl, NAME.test.jsonl or NAME.validation.jsonl, and NAME.json in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionbench_lite.data.text import descriptions
from fusionbench_lite.data.text.descriptions import Description
from fusionbench_lite.data.text.examples import Examples, examples
from fusionbench_lite.errors import InputError, nearest
from fusionbench_lite.paths import file_sha256

TEST = ("test", "validation")
"""The splits that results may be of; the first that is there is."""
_SUFFIX = ".jsonl"


def names(folder: Path) -> tuple[str, ...]:
    """Return the tasks whose test split is in a folder, sorted."""
    ends = tuple(f".{split}{_SUFFIX}" for split in TEST)
    return tuple(sorted({file.name.removesuffix(end) for end in ends for file in folder.glob(f"*{end}")}))


def reads(name: str, folder: Path | None) -> bool:
    """Say whether a task comes from files of `folder`: a split of it is there."""
    return folder is not None and any((folder / f"{name}.{split}{_SUFFIX}").exists() for split in ("train", *TEST))


def test_file(name: str, folder: Path) -> Path:
    """Return the file of the test split; raises InputError where there is none."""
    files = [folder / f"{name}.{split}{_SUFFIX}" for split in TEST]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        match = nearest(name, names(folder))
        hint = f" (the nearest task there is {match})" if match else ""
        raise InputError(f"{files[0]} is missing, and so is {files[1].name}{hint}: results are of one of them")
    return found


def train_file(name: str, folder: Path) -> Path | None:
    """Return the file of the training split, None where there is none: experts may have been trained elsewhere."""
    file = folder / f"{name}.train{_SUFFIX}"
    return file if file.is_file() else None


def description(name: str, folder: Path) -> Description:
    """Return what a task is: NAME.json says so, for the names of GLUE without that file GLUE does."""
    file = folder / f"{name}.json"
    if file.exists():
        return descriptions.read(file, name)
    if name in descriptions.glue_names():
        return descriptions.glue(name)
    raise InputError(
        f'{file} is missing: write the columns, the label and the classes into it, as {{"text": ["sentence"], "label": "label", '
        '"classes": ["negative", "positive"]}'
    )


def split(entry: Description, file: Path) -> Examples:
    """Return the examples of a file; raises InputError that names file, line and fix."""
    return examples(entry, _lines(file), str(file), {str(file): file_sha256(file)})


def _lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a file with the numbers of their lines. Empty lines are passed over, as at the end of a file."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"line {number}", _object(file, number, line)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not readable as UTF-8 text ({error}): write it anew") from error


def _object(file: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{file}, line {number} is not JSON ({error}): write one object a line") from error
    if not isinstance(row, dict):
        raise InputError(f"{file}, line {number} holds {type(row).__name__}, not an object: write {{...}} with columns and label")
    return row
