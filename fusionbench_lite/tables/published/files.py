"""Lines of a file of comma-separated values, each with its number and as many fields as there are columns."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from fusionbench_lite.errors import InputError
from fusionbench_lite.tables.published.schema import Line, refusal


def read_lines(path: Path, columns: Sequence[str]) -> list[Line]:
    """Return the lines below the head, which has to be these columns; raises InputError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}): restore it") from error
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    lines: list[Line] = []
    try:
        head = next(reader, [])
        if head != list(columns):
            wrong = next((name for name in (*head, *columns) if name not in columns or name not in head), None)
            what = f"{wrong!r} is missing or unknown" if wrong else "their order differs"
            raise refusal(path, 1, f"the columns have to be {','.join(columns)}: {what}")
        for fields in reader:
            if len(fields) != len(columns):
                raise refusal(path, reader.line_num, f"{len(fields)} fields, not {len(columns)}: quote a field that has a comma")
            lines.append(Line(path, reader.line_num, dict(zip(columns, fields, strict=True))))
    except csv.Error as error:
        raise refusal(path, reader.line_num, f"not comma-separated values ({error}): restore it") from error
    return lines
