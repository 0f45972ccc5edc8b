"""Tables to files: every format by name, each file written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fusionbench_lite.paths import atomic_file
from fusionbench_lite.tables import latex, plot, render, terminal
from fusionbench_lite.tables.frame import Table

TEXT_FORMATS: dict[str, Callable[[Table], str]] = {
    "text": terminal.to_text,
    "csv": render.to_csv,
    "latex": latex.to_latex,
    "markdown": render.to_markdown,
    "html": render.to_html,
}
SUFFIXES = {"text": ".txt", "csv": ".csv", "latex": ".tex", "markdown": ".md", "html": ".html", "png": ".png"}


def save(table: Table, kind: str, path: str | Path) -> Path:
    """Write a table in one format atomically. Raises InputError when the file system refuses."""
    path = Path(path)
    with atomic_file(path) as temporary:
        if kind == "png":
            plot.draw(table, temporary)
        else:
            temporary.write_text(TEXT_FORMATS[kind](table), encoding="utf-8")
    return path


def write_table(table: Table, directory: str | Path) -> dict[str, Path]:
    """Write table.csv, table.tex, table.md and table.png; returns {format: path}."""
    kinds = ("csv", "latex", "markdown", "png")
    return {kind: save(table, kind, Path(directory) / f"table{SUFFIXES[kind]}") for kind in kinds}
