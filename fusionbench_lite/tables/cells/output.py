"""Grids to files: every format by name, each file written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fusionbench_lite.paths import atomic_file
from fusionbench_lite.planning.experiments import Experiment
from fusionbench_lite.tables.cells import latex, render
from fusionbench_lite.tables.cells.grid import Grid
from fusionbench_lite.tables.rows import table_dir

TEXT_FORMATS: dict[str, Callable[[Grid], str]] = {
    "text": render.to_text,
    "csv": render.to_csv,
    "latex": latex.to_latex,
    "markdown": render.to_markdown,
    "html": render.to_html,
}
SUFFIXES = {"text": ".txt", "csv": ".csv", "latex": ".tex", "markdown": ".md", "html": ".html", "png": ".png"}


def folder(results_dir: Path, experiment: Experiment) -> Path:
    """Return where the table of an experiment lies; its twin has a folder of its own."""
    return table_dir(results_dir, experiment.full_name)


def save(grid: Grid, kind: str, path: Path) -> Path:
    """Write a grid in one format atomically. Raises InputError when the file system refuses."""
    with atomic_file(path) as temporary:
        if kind == "png":
            from fusionbench_lite.tables.cells import picture  # matplotlib takes a second to import

            picture.draw(grid, temporary)
        else:
            temporary.write_text(TEXT_FORMATS[kind](grid), encoding="utf-8")
    return path


def write_grid(grid: Grid, directory: Path) -> dict[str, Path]:
    """Write table.csv, .tex, .md, .html and .png; returns {format: path}."""
    kinds = ("csv", "latex", "markdown", "html", "png")
    return {kind: save(grid, kind, directory / f"table{SUFFIXES[kind]}") for kind in kinds}
