"""A grid as a picture: a panel per column, ours with its interval beside the published value."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fusionbench_lite.tables.cells import texts
from fusionbench_lite.tables.cells.grid import Cell, Grid, Line
from fusionbench_lite.tables.plot import literal
from fusionbench_lite.tables.style import DPI, INK, MARGIN, SOFT, Sheet

_ROW, _PANEL, _GAP, _HEAD, _ACROSS = 0.24, 1.75, 0.18, 0.55, 6
OURS, PUBLISHED = "#0072B2", "#D55E00"


def draw(grid: Grid, path: Path) -> None:
    """Write the picture as PNG to `path`: rows from top to bottom as in the table, six columns to a band."""
    labels = 0.12 + 0.075 * max(len(row.name) for row in grid.rows)
    across = min(_ACROSS, len(grid.columns))
    bands = math.ceil(len(grid.columns) / across)
    height = _HEAD + _ROW * len(grid.rows) + 0.5
    width = max(2 * MARGIN + labels + across * (_PANEL + _GAP), 7.0)
    sheet = Sheet(width, bands * height + 0.45, texts.heading(grid), grid.question, _below(grid))
    for number, column in enumerate(grid.columns):
        band, place = divmod(number, across)
        left, top = MARGIN + labels + place * (_PANEL + _GAP), sheet.top + band * height
        axes = sheet.axes(left, top + _HEAD, _PANEL, _ROW * len(grid.rows))
        _panel(axes, grid, column)
        name = f"{column.group}\n{column.name}" if column.group and not column.name.startswith(column.group) else column.name
        sheet.text(left, top + _HEAD - 0.07, name, fontsize=8, color=INK, va="bottom")
        if place == 0:
            for index, row in enumerate(grid.rows):
                at = top + _HEAD + (index + 0.5) * _ROW
                sheet.text(left - 0.1, at, row.name, fontsize=8, color=INK, ha="right", va="center")
    handles = [
        Line2D([], [], color=OURS, marker="o", markersize=4, linewidth=1.2),
        Line2D([], [], color=PUBLISHED, marker="|", markersize=9, linewidth=0, markeredgewidth=1.6),
    ]
    shown = 1 if grid.scale == "mini" else 2
    sheet.legend(MARGIN, sheet.top + bands * height + 0.1, handles[:shown], ["ours, 95% interval", "published"][:shown])
    sheet.figure.savefig(path, dpi=DPI, format="png", metadata={"Software": None})


def _below(grid: Grid) -> list[str]:
    return [remark for remark in texts.remarks(grid) if not remark.startswith(("⚑", "Below", "The published", "Ours:"))][:6]


def _panel(axes: Axes, grid: Grid, column: Line) -> None:
    cells = grid.column(column.name)
    for place, cell in enumerate(cells):
        if place and grid.rows[place].group != grid.rows[place - 1].group:
            axes.axhline(place - 0.5, color="#CBD2D9", linewidth=0.6)
        _draw(axes, cell, place)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(axis="x", color="#E4E7EB", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=3)
    unit = next((cell.unit for cell in cells if cell.unit), "")
    axes.set_xlabel(literal({"percent": "%"}.get(unit or "", unit or "")), fontsize=7, color=SOFT, labelpad=1)
    if not any(cell.ours is not None or cell.published is not None for cell in cells):
        axes.set_xticks([])


def _draw(axes: Axes, cell: Cell, place: int) -> None:
    if cell.published is not None:
        axes.plot([cell.published], [place], marker="|", markersize=9, markeredgewidth=1.6, color=PUBLISHED, linewidth=0)
    if cell.ours is None:
        return
    if cell.low is not None and cell.high is not None:
        axes.plot([cell.low, cell.high], [place, place], color=OURS, linewidth=1.2)
    axes.plot([cell.ours], [place], marker="o", markersize=4, color=OURS, linewidth=0)
