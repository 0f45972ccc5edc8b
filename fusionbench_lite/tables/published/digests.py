"""Digests of the published numbers: an edit that is well-formed is noticed too, and the table whose lines it is in is named.

A digest is over the fields of a table's lines in one file, so that line endings and quotes may differ. Whoever means an edit
writes them anew, which `results/published/README.md` describes:

    from fusionbench_lite.tables.published import digests; digests.write("results/published")
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import atomic_file, expanded
from fusionbench_lite.tables.published.files import read_lines
from fusionbench_lite.tables.published.schema import COLUMNS, Line, refusal

NAME = "SHA256SUMS"
_MEND = f"restore it, or write {NAME} anew as README.md beside it says"


def check(folder: Path, files: Mapping[str, Iterable[Line]]) -> None:
    """Raise InputError for the first table whose lines in a file are not those that the digests were written for."""
    stored = _stored(folder)
    for file, lines in files.items():
        known, found = stored.get(file, {}), _digests(lines)
        for table, (digest, places) in found.items():
            if known.get(table) != digest:
                where = f"{places[0]}" if len(places) == 1 else f"{places[0]} to {places[-1]}"
                raise refusal(folder / file, where, f"edited: what {table} has there is not what {NAME} was written for: {_MEND}")
        if missing := [table for table in known if table not in found]:
            raise InputError(f"{folder / file} has no line of {missing[0]}, which {NAME} knows: {_MEND}")


def write(folder: str | Path) -> None:
    """Write the digests of the files of a folder as they are."""
    place = expanded(folder)
    made = [
        f"{digest}  {file}  {table}\n"
        for file in COLUMNS
        for table, (digest, _) in _digests(read_lines(place / file, COLUMNS[file])).items()
    ]
    with atomic_file(place / NAME) as temporary:
        temporary.write_text("".join(made), encoding="utf-8")


def _digests(lines: Iterable[Line]) -> dict[str, tuple[str, list[int]]]:
    """Return {paper/table: (digest of its lines in their order, where they are)}."""
    texts: dict[str, list[str]] = {}
    places: dict[str, list[int]] = {}
    for line in lines:
        table = f"{line['paper']}/{line['table']}"
        texts.setdefault(table, []).append("\x1f".join(line.fields.values()))
        places.setdefault(table, []).append(line.number)
    return {
        table: (hashlib.sha256("\x1e".join(text).encode()).hexdigest(), places[table]) for table, text in texts.items()
    }


def _stored(folder: Path) -> dict[str, dict[str, str]]:
    """Return {file: {table: digest}}; raises InputError where the digests are not there or not digests."""
    path = folder / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}): {_MEND}") from error
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if len(parts) != 3:
            raise refusal(path, number, f"{line!r} is no digest, file and table: {_MEND}")
        found.setdefault(parts[1], {})[parts[2]] = parts[0]
    return found
