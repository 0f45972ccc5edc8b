"""Grids made by hand: small ones whose every text is known, and ones of any size."""

from __future__ import annotations

from typing import Any

from fusionbench_lite.tables.cells.grid import Cell, Grid, Line

HARD = (
    "R&D_50%", "$x^2$ #1", "{a}~b", "a\\b|c", "*y* [z]", "<b>w</b>", "[0.5] first", "--flag", "größe naïve", "λ × Δ", "模型 ⚑",
    "line\nbreak", "`code`", "\\input{x}", "a & b \\\\", "%", "'q' \"r\"",
)  # fmt: skip


def cell(ours: float | None = None, published: float | None = None, **given: Any) -> Cell:
    """A cell of an accuracy in percent, with what follows from its two numbers and an interval of half a point."""
    known = {} if ours is None else {"low": ours - 0.5, "high": ours + 0.5, "seeds": 1, "keys": (f"key{ours}",)}
    marks = ["–"] if ours is None else []
    if ours is not None and published is not None:
        known["difference"] = ours - published
        marks = ["=" if abs(ours - published) <= 0.5 else "≠"]
    printed = None if published is None else str(published)
    base: dict[str, Any] = {
        "statistic": "average", "unit": "percent", "ours": ours, "published": published, "printed": printed,
        "marks": (*marks, *given.pop("also", ())), "family": "ta", "select": "last",
    }  # fmt: skip
    return Cell(**{**base, **known, **given})


def grid(cells: dict[tuple[str, str], Cell], **given: Any) -> Grid:
    """A grid of these cells, rows and columns in the order of their first cell, unless they are given."""
    rows = tuple(Line(name=name) for name in dict.fromkeys(row for row, _ in cells))
    columns = tuple(Line(name=name) for name in dict.fromkeys(column for _, column in cells))
    base: dict[str, Any] = {"experiment": "doge/table_6", "title": "Ablation", "rows": rows, "columns": columns, "cells": cells}
    return Grid(**{**base, **given})


def small(**given: Any) -> Grid:
    """Three rows in two groups and two columns: a flag, another family, a cell that is left out and one that was not run."""
    rows = (Line(name="Individual", group="Bounds"), Line(name="TA", group="Merged"), Line(name="doGe TA", group="Merged"))
    columns = (Line(name="8 tasks", group="ViT-B/32"), Line(name="14 tasks", group="ViT-B/32"))
    cells = {
        ("Individual", "8 tasks"): cell(
            90.52, 90.8, also=("⚑", "◇"), corrected=90.5, flags=("The mean is 90.5.",), comparable=False
        ),
        ("Individual", "14 tasks"): cell(omitted="the paper leaves it out"),
        ("TA", "8 tasks"): cell(69.06, 69.1, sd=0.21, seeds=3),
        ("TA", "14 tasks"): cell(65.2, 65.4),
        ("doGe TA", "8 tasks"): cell(79.4, 80.7),
        ("doGe TA", "14 tasks"): cell(None, 77.9),
    }
    return grid(cells, **{"rows": rows, "columns": columns, "question": "What does it add?", **given})


def large(rows: int, columns: int, *, records: bool = True) -> Grid:
    """A grid whose numbers are all different: ours below, published above 1,000."""
    names = [f"method {number}" for number in range(rows)], [f"task {number}" for number in range(columns)]
    cells = {}
    for row, method in enumerate(names[0]):
        for column, task in enumerate(names[1]):
            number = row * columns + column
            ours = round(100 + number / 10, 1) if records else None
            cells[method, task] = cell(ours, round(2000 + number / 10, 1), also=("⚑",) if number % 7 == 3 else ())
    lines = tuple(Line(name=name, group=f"family {place // 5}") for place, name in enumerate(names[0]))
    heads = tuple(Line(name=name, group=f"model {place // 4}") for place, name in enumerate(names[1]))
    return grid(cells, rows=lines, columns=heads)
