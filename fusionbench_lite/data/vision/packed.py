"""Images in parquet files as the hub's library writes them, and in tar files of the webdataset kind."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionbench_lite.data.vision import decoding
from fusionbench_lite.data.vision.encoded import Opener, Rows
from fusionbench_lite.errors import InputError

_AT_ONCE = 64
_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "gif", "tif", "tiff")


class Parquet:
    """The image column of parquet files, read one row group at a time: a struct of bytes and path, or the bytes themselves."""

    def __init__(self, paths: Sequence[Path], column: str) -> None:
        self.paths, self.column = list(paths), column
        self._units: list[tuple[int, int]] = []
        starts = [0]
        for number, path in enumerate(self.paths):
            with parquet(path, [column]) as file:
                for group in range(file.num_row_groups):
                    self._units.append((number, group))
                    starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        self._starts = np.array(starts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, row: int) -> str:
        """Return the file and its row."""
        file = self._units[self._unit_of(row)][0]
        first = next(number for number, unit in enumerate(self._units) if unit[0] == file)
        return f"{self.paths[file].name} row {row - int(self._starts[first])}"

    def groups(self, rows: Rows) -> list[Rows]:
        """Return the rows of each row group."""
        rows = np.sort(rows)
        cuts = np.flatnonzero(np.diff(np.searchsorted(self._starts, rows, "right"))) + 1
        return np.split(rows, cuts) if len(rows) else []

    def read(self, rows: Rows) -> Iterator[tuple[int, Opener]]:
        """Yield the rows, a row group after the other."""
        for row, content in self.contents(rows):
            yield row, lambda content=content: decoding.opened(content)  # type: ignore[misc]

    def contents(self, rows: Rows) -> Iterator[tuple[int, bytes | None]]:
        """Yield the rows, in their order, with the bytes of their images; None where there are none."""
        for group in self.groups(rows):
            unit = self._unit_of(int(group[0]))
            number, row_group = self._units[unit]
            wanted, start = set(group.tolist()), int(self._starts[unit])
            with parquet(self.paths[number], [self.column]) as file:
                for batch in file.iter_batches(_AT_ONCE, row_groups=[row_group], columns=[self.column]):
                    column = batch.column(0)
                    for place in range(len(column)):
                        if start + place in wanted:
                            yield start + place, _bytes(column[place].as_py())
                    start += len(column)

    def _unit_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, "right")) - 1


def _bytes(cell: Any) -> bytes | None:
    content: bytes | None = cell.get("bytes") if isinstance(cell, dict) else cell
    return content


@contextlib.contextmanager
def parquet(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Open a parquet file that has these columns; raises InputError where it cannot be read or lacks one."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            there = file.schema_arrow.names
            for column in columns:
                if column not in there:
                    raise InputError(f"{path} has no column {column!r} (it has {', '.join(there)}): take the files of this dataset")
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable parquet file ({reason}): remove it, so that it is fetched again") from error


def parquet_labels(paths: Sequence[Path], column: str, boolean: bool) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Return the label column of parquet files and the class names of their feature metadata, None without.

    `boolean` takes false for 0 and true for 1. Raises InputError for labels that are missing or not of that kind.
    """
    import pyarrow.types

    parts, classes = [], None
    for path in paths:
        with parquet(path, [column]) as file:
            chunk = file.read(columns=[column]).column(0)
            classes = classes or _class_names(file.schema_arrow.metadata, column)
        if chunk.null_count:
            raise InputError(f"{path}: {chunk.null_count} of {len(chunk)} rows have no {column}: take a complete file")
        kind = chunk.type
        if not (pyarrow.types.is_integer(kind) or (boolean and pyarrow.types.is_boolean(kind))):
            raise InputError(f"{path}: {column} is {kind}, not {'boolean' if boolean else 'an integer type'}: take another file")
        try:
            parts.append(np.asarray(chunk.to_pylist(), np.int64))
        except OverflowError as error:
            raise InputError(f"{path}: {column} has numbers beyond 64 bits with a sign: take another file") from error
    return np.concatenate(parts) if parts else np.zeros(0, np.int64), classes


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


class Tar:
    """Images of tar files in which the members of one example share their name up to the first dot: KEY.jpg and KEY.cls."""

    def __init__(self, paths: Sequence[Path], image: str, label: str) -> None:
        self.paths = list(paths)
        self._places: list[tuple[int, int, int, str]] = []
        labels: list[int] = []
        wanted = {image, *_SUFFIXES}
        for number, path in enumerate(self.paths):
            for key, members in _examples(path).items():
                suffix_of_image = next((suffix for suffix in members if suffix in wanted), None)
                if suffix_of_image is None or label not in members:
                    raise InputError(f"{path}: {key} has {', '.join(members)}, not an image and {label}: take another file")
                member = members[suffix_of_image]
                self._places.append((number, member.offset_data, member.size, f"{key}.{suffix_of_image}"))
                labels.append(_label(path, key, members[label]))
        self.labels = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, row: int) -> str:
        """Return the file and the member."""
        number, _, _, member = self._places[row]
        return f"{self.paths[number].name} member {member}"

    def groups(self, rows: Rows) -> list[Rows]:
        """Return the rows of each file."""
        rows = np.sort(rows)
        files = np.array([self._places[row][0] for row in rows.tolist()])
        return np.split(rows, np.flatnonzero(np.diff(files)) + 1) if len(rows) else []

    def read(self, rows: Rows) -> Iterator[tuple[int, Opener]]:
        """Yield the rows, a file after the other."""
        for group in self.groups(rows):
            path = self.paths[self._places[int(group[0])][0]]
            try:
                with path.open("rb") as file:
                    for row in group.tolist():
                        _, offset, size, _ = self._places[row]
                        content = os.pread(file.fileno(), size, offset)
                        yield row, lambda content=content: decoding.opened(content)  # type: ignore[misc]
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror or error}; put the file back") from error


def _examples(path: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    examples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                key, dot, suffix = base.partition(".")
                if member.isfile() and dot and key:
                    examples.setdefault(f"{folder}/{key}" if folder else key, {})[suffix.lower()] = member
            ends = [member.offset_data + member.size for member in archive.getmembers()]
            # A file cut at a member's end reads as a whole one, but for the empty blocks that close it.
            if path.stat().st_size < max(ends, default=0) + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("the end is missing")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path} is not a readable tar file ({error}): remove it, so that it is fetched again") from error
    return examples


def _label(path: Path, key: str, member: tarfile.TarInfo) -> int:
    with path.open("rb") as file:
        text = os.pread(file.fileno(), member.size, member.offset_data)
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{path}: the label of {key} is {text[:20]!r}, not an integer: take another file") from error
