"""What pages have in common: how they are written, tables, and paragraphs of the width of the docs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from fusionbench_lite.paths import atomic_file


def write(path: Path, text: str) -> None:
    """Write a page, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"written {path}")


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a page of paragraphs, with one empty line between two."""
    write(path, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)))


def table(rows: Iterator[list[object]]) -> Iterator[str]:
    """Yield the lines of a table, whose first row is its head."""
    head = next(rows)
    yield f"| {' | '.join(map(str, head))} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def wrapped(text: str) -> list[str]:
    """Return the lines of a paragraph."""
    return textwrap.wrap(text, width=128, break_long_words=False, break_on_hyphens=False)
