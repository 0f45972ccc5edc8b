"""A grid as one picture: a panel of points per column, or shaded numbers where there are many columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fusionbench_lite.tables.cells.formats.panels import draw_panels, panels_width
from fusionbench_lite.tables.cells.formats.places import MOST_PANELS, Rows
from fusionbench_lite.tables.cells.formats.shades import draw_shades, shades_bands, shades_width
from fusionbench_lite.tables.cells.grid import Grid
from fusionbench_lite.tables.cells.shown import one_line, view
from fusionbench_lite.tables.style import DPI, MARGIN, Sheet

_LEGEND = 0.34


def draw(grid: Grid, path: str | Path) -> None:
    """Write the picture as PNG. The bytes depend on the grid and the library versions only."""
    figure(grid).savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def figure(grid: Grid) -> Figure:
    """The picture before it is written."""
    shown = view(grid)
    rows = Rows(shown)
    panels = len(grid.columns) <= MOST_PANELS
    bands = [list(range(len(grid.columns)))] if panels else shades_bands(shown)
    width = rows.labels + (panels_width(shown) if panels else max(shades_width(band) for band in bands))
    width = max(2 * MARGIN + width, 2 * MARGIN + 0.118 * len(shown.heading), 6.5)
    sheet = Sheet(width, _LEGEND + _body(rows, bands), shown.heading, one_line(grid.question), shown.remarks("Bold is best"))
    if panels:
        draw_panels(sheet, shown, rows, _LEGEND)
    else:
        draw_shades(sheet, shown, rows, bands, _LEGEND)
    return sheet.figure


def _body(rows: Rows, bands: Sequence[Sequence[int]]) -> float:
    return sum(rows.head(band) + rows.height + rows.foot for band in bands)
