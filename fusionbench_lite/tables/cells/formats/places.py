"""Where rows and headings of a picture lie, in inches."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from fusionbench_lite.tables.cells.shown import View, one_line, runs
from fusionbench_lite.tables.cells.widths import wrapped
from fusionbench_lite.tables.style import INK, MARGIN, SOFT, Sheet

MOST_PANELS = 6
"""More columns than these are shown as shaded numbers."""
_CHARACTER, _LONGEST = 0.082, 40


class Rows:
    """The rows of a grid from above: a heading per group, then its rows. Panels have axes below them, shades have not."""

    def __init__(self, shown: View) -> None:
        self.shown = shown
        self.panels = len(shown.grid.columns) <= MOST_PANELS
        self.row = 0.3 if self.panels else 0.4
        self.foot = 0.55 if self.panels else 0.25
        self.names = [wrapped(row.name, _LONGEST) for row in shown.grid.rows]
        longest = max((len(line) for name in self.names for line in name), default=0)
        groups = max((len(row.group) for row in shown.grid.rows), default=0)
        self.labels = 0.3 + _CHARACTER * max(longest + 1, min(groups, _LONGEST))

    @functools.cached_property
    def middles(self) -> list[float]:
        """The middle of every row below the upper edge of the first heading."""
        middles: list[float] = []
        top = 0.0
        for number, (group, places) in enumerate(runs(self.shown.grid.rows)):
            top += 0.3 if group else 0.1 * bool(number)
            for place in places:
                height = max(self.row, 0.17 * len(self.names[place]) + 0.06)
                middles.append(top + height / 2)
                top += height
        return middles

    @property
    def height(self) -> float:
        """The height of all rows."""
        return (self.middles[-1] if self.middles else 0.0) + self.row

    def write(self, sheet: Sheet, top: float) -> None:
        """Write the names and the headings of their groups, beginning `top` inches below the upper edge of the sheet."""
        style = {"va": "center_baseline", "linespacing": 1.05}
        for group, places in runs(self.shown.grid.rows):
            if group:
                at = top + self.middles[places.start] - self.row / 2 - 0.12
                sheet.text(MARGIN, at, group, fontsize=9, fontstyle="italic", color=SOFT, **style)
            for place in places:
                text = "\n".join(self.names[place])
                sheet.text(MARGIN + 0.1 * bool(group), top + self.middles[place], text, fontsize=9, color=INK, **style)

    def head(self, columns: Sequence[int]) -> float:
        """The height of what stands above the first row: the columns' names and groups."""
        lines = [self.shown.grid.columns[place] for place in columns]
        grouped = 0.3 * any(line.group for line in lines)
        if self.panels:
            return grouped + 0.1 + 0.17 * max((len(self.title(place)) for place in columns), default=0)
        return grouped + 0.15 + 0.075 * max((len(one_line(line.name)) for line in lines), default=0)

    def title(self, place: int) -> list[str]:
        """The lines of the name of a panel."""
        return wrapped(self.shown.grid.columns[place].name, 28)
