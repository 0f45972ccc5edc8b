"""Grids to files: every format by name, each file written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fusionbench_lite.paths import atomic_file
from fusionbench_lite.tables.cells.formats.latex import to_latex
from fusionbench_lite.tables.cells.formats.markdown import to_markdown
from fusionbench_lite.tables.cells.formats.numbers import to_csv
from fusionbench_lite.tables.cells.formats.page import to_html
from fusionbench_lite.tables.cells.formats.text import to_text
from fusionbench_lite.tables.cells.grid import Grid

TEXT_FORMATS: dict[str, Callable[[Grid], str]] = {
    "text": to_text,
    "csv": to_csv,
    "latex": to_latex,
    "markdown": to_markdown,
    "html": to_html,
}
SUFFIXES = {"text": ".txt", "csv": ".csv", "latex": ".tex", "markdown": ".md", "html": ".html", "png": ".png"}
WRITTEN = ("csv", "latex", "markdown", "html", "png")


def save(grid: Grid, kind: str, path: str | Path) -> Path:
    """Write a grid in one format atomically. Raises WriteError when the file system refuses."""
    path = Path(path)
    with atomic_file(path) as temporary:
        if kind == "png":
            from fusionbench_lite.tables.cells.formats.picture import draw  # matplotlib takes a second to import

            draw(grid, temporary)
        else:
            temporary.write_text(TEXT_FORMATS[kind](grid), encoding="utf-8")
    return path


def write_grid(grid: Grid, directory: str | Path) -> dict[str, Path]:
    """Write table.csv, table.tex, table.md, table.html and table.png; returns {format: path}."""
    return {kind: save(grid, kind, Path(directory) / f"table{SUFFIXES[kind]}") for kind in WRITTEN}
