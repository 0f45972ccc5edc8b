"""Many columns as shaded numbers: ours above the published one, the shade says how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from fusionbench_lite.tables.cells.blocks import blocks
from fusionbench_lite.tables.cells.formats.places import Rows
from fusionbench_lite.tables.cells.grid import Cell
from fusionbench_lite.tables.cells.shown import View, one_line, runs
from fusionbench_lite.tables.cells.texts import Shown
from fusionbench_lite.tables.ranking import BEST
from fusionbench_lite.tables.style import DIVERGING, HEAT, INK, MARGIN, Sheet, literal, square

_CELL, _MOST = 0.74, 21
"""Inches of a cell, and the columns of a band; more stand below each other."""


def shades_bands(shown: View) -> list[list[int]]:
    """Return the columns of each band."""
    return blocks([places for _, places in runs(shown.grid.columns)], [1] * len(shown.grid.columns), _MOST)


def shades_width(band: Sequence[int]) -> float:
    """Return the inches that the cells of a band take."""
    return _CELL * len(band)


def draw_shades(sheet: Sheet, shown: View, rows: Rows, bands: Sequence[Sequence[int]], legend: float) -> None:
    """Draw the bands and the meaning of the shades below the subtitle of the sheet."""
    shades = _Shades(shown)
    sheet.legend(MARGIN, sheet.top, *shades.legend())
    top = sheet.top + legend
    for band in bands:
        head = rows.head(band)
        rows.write(sheet, top + head)
        axes = sheet.axes(MARGIN + rows.labels, top + head, shades_width(band), rows.height, plain=True)
        axes.set_xlim(0, len(band))
        axes.set_ylim(rows.height, 0)
        _heads(axes, shown, band, head)
        for number, middle in enumerate(rows.middles):
            for column, place in enumerate(band):
                cell = shown.cell(shown.grid.rows[number], shown.grid.columns[place])
                _box(axes, shown.cells[number][place], shades.of(cell), column, middle, rows.row)
        top += head + rows.height + rows.foot


class _Shades:
    """The colour of a cell: its difference, over the largest one of its unit; or without any its value, dark for high."""

    def __init__(self, shown: View) -> None:
        cells = list(shown.grid.cells.values())
        self.against = any(cell.difference is not None for cell in cells)
        self.ends: dict[str | None, tuple[float, float]] = {}
        for unit in {cell.unit for cell in cells}:
            values = [self._value(cell) for cell in cells if cell.unit == unit]
            present = [value for value in values if value is not None]
            if present:
                self.ends[unit] = (min(present), max(present))

    def _value(self, cell: Cell) -> float | None:
        if self.against:
            return cell.difference
        return cell.published if cell.ours is None else cell.ours

    def of(self, cell: Cell | None) -> tuple[Any, bool] | None:
        """Return the colour and whether it is dark, None where there is nothing to show."""
        value = None if cell is None else self._value(cell)
        if cell is None or value is None:
            return None
        low, high = self.ends[cell.unit]
        if self.against:
            most = max(abs(low), abs(high)) or 1.0
            return DIVERGING(0.5 + 0.5 * value / most), abs(value) > 0.55 * most
        shade = (value - low) / (high - low) if high > low else 0.4
        return HEAT(shade), shade > 0.55

    def legend(self) -> tuple[list[Any], list[str]]:
        """Return handles and labels."""
        if self.against:
            far = [max(abs(low), abs(high)) for low, high in self.ends.values()]
            about = f" by {far[0]:,.3g}" if len(far) == 1 else ", by the most of its unit"
            handles = [square(DIVERGING(place)) for place in (0.0, 0.5, 1.0)]
            return handles, [f"ours below the published{about}", "equal", f"ours above it{about}"]
        return [square(HEAT(0.15)), square(HEAT(0.9))], ["low", "high among numbers of its unit"]


def _heads(axes: Axes, shown: View, band: Sequence[int], head: float) -> None:
    """Write the names of the columns upright, and their groups above them."""
    lines = [shown.grid.columns[place] for place in band]
    style: dict[str, Any] = {"color": INK, "annotation_clip": False, "textcoords": "offset points"}
    for column, line in enumerate(lines):
        name = literal(one_line(line.name))
        axes.annotate(name, (column + 0.5, 0), xytext=(0, 4), rotation=90, ha="center", va="bottom", fontsize=9, **style)
    for group, places in runs(lines):
        if group:
            raised = (0, 72 * head - 16)
            axes.annotate(
                literal(group), (places.start + 0.04, 0), xytext=raised, ha="left", va="bottom", fontsize=9.5, fontweight="bold",
                **style,
            )  # fmt: skip


def _box(axes: Axes, text: Shown, shade: tuple[Any, bool] | None, column: int, middle: float, height: float) -> None:
    colour, dark = shade or ("none", False)
    top, bottom = middle - height / 2 + 0.01, middle + height / 2 - 0.01
    sides = [column + 0.02, column + 0.98, column + 0.98, column + 0.02]
    axes.fill(sides, [top, top, bottom, bottom], color=colour, linewidth=0)
    ours = " ".join(filter(None, (text.ours, text.marks)))
    paper = " ".join(filter(None, (text.published, text.corrected, text.flag + text.verdict)))
    style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "color": "white" if dark else INK}
    bold = "bold" if text.rank == BEST else "normal"
    small = 6.5 if text.corrected else 7.5
    axes.text(column + 0.5, middle - 0.085 * bool(paper), literal(ours), fontsize=8.5, fontweight=bold, **style)
    axes.text(column + 0.5, middle + 0.085 * bool(ours), literal(paper), fontsize=small, **style)
