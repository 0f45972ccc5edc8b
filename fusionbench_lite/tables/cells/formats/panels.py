"""A panel per column: ours as points with their intervals, the published number as a mark beside them."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from fusionbench_lite.tables.cells.formats.places import Rows
from fusionbench_lite.tables.cells.grid import NOT_RUN, Cell
from fusionbench_lite.tables.cells.shown import View, runs
from fusionbench_lite.tables.cells.texts import Shown
from fusionbench_lite.tables.ranking import BEST
from fusionbench_lite.tables.style import CYCLE, FAINT, INK, MARGIN, SOFT, Sheet, grid, literal

_OURS, _PAPER = CYCLE[0], CYCLE[1]
_PANEL, _CHARACTER, _BETWEEN = 1.75, 0.076, 0.2
_LOGARITHMIC, _THOUSANDS = 50, 10_000
"""Numbers that differ by this factor stand on a logarithmic axis; ticks from here on are written as 10k, 2M."""


def panels_width(shown: View) -> float:
    """Return the inches that the panels of a grid take."""
    return _lefts(shown)[-1]


def _lefts(shown: View) -> list[float]:
    """Return where each panel begins, and where the last ends, in inches from the first."""
    lefts = [0.0]
    for place in range(len(shown.grid.columns)):
        longest = max((len(_said(row[place])) for row in shown.cells), default=0)
        lefts.append(lefts[-1] + _PANEL + 0.1 + _CHARACTER * longest + _BETWEEN)
    return lefts


def draw_panels(sheet: Sheet, shown: View, rows: Rows, legend: float) -> None:
    """Draw the names, the panels and the legend below the subtitle of the sheet."""
    columns = shown.grid.columns
    head = rows.head(range(len(columns)))
    top = sheet.top + legend + head
    _legend(sheet, shown)
    rows.write(sheet, top)
    left = MARGIN + rows.labels
    lefts = [left + start for start in _lefts(shown)]
    for group, places in runs(columns):
        if group:
            start, end = lefts[places.start], lefts[places.stop] - _BETWEEN
            sheet.text(start, top - head, group, fontsize=10, fontweight="bold", color=INK)
            sheet.figure.add_artist(_rule(sheet, start, end, top - head + 0.2))
    for place in range(len(columns)):
        title = rows.title(place)
        start = lefts[place]
        sheet.text(start, top - 0.06 - 0.17 * len(title), "\n".join(title), fontsize=9.5, color=INK)
        axes = sheet.axes(start, top, _PANEL, rows.height)
        _panel(axes, shown, rows, place)


def _rule(sheet: Sheet, left: float, right: float, top: float) -> Line2D:
    y = 1 - top / sheet.height
    return Line2D([left / sheet.width, right / sheet.width], [y, y], color=SOFT, linewidth=0.8)


def _legend(sheet: Sheet, shown: View) -> None:
    cells = shown.grid.cells.values()
    ours = Line2D([], [], color=_OURS, marker="o", markersize=5.5, linewidth=2)
    paper = Line2D([], [], linestyle="", marker="D", markersize=5.5, markerfacecolor="none", markeredgecolor=_PAPER)
    right = Line2D([], [], linestyle="", marker="x", markersize=5.5, color=_PAPER)
    entries = [
        (any(cell.ours is not None for cell in cells), ours, "ours, 95% interval"),
        (any(cell.published is not None for cell in cells), paper, "published"),
        (any(cell.corrected is not None for cell in cells), right, "likely right value of a flagged one"),
    ]
    there = [(handle, label) for present, handle, label in entries if present]
    if there:
        sheet.legend(MARGIN, sheet.top, [handle for handle, _ in there], [label for _, label in there])


def _panel(axes: Axes, shown: View, rows: Rows, place: int) -> None:
    column = shown.grid.columns[place]
    there = [shown.cell(row, column) for row in shown.grid.rows]
    axes.set_ylim(rows.height, 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    _limits(axes, [cell for cell in there if cell is not None])
    grid(axes, "x")
    for number, cell in enumerate(there):
        if cell is None:
            continue
        y, text = rows.middles[number], shown.cells[number][place]
        axes.axhline(y, color=FAINT, linewidth=0.6, zorder=0)
        _points(axes, cell, y)
        _say(axes, text, y)


def _limits(axes: Axes, cells: list[Cell]) -> None:
    values = [v for c in cells for v in (c.ours, c.low, c.high, c.published, c.corrected) if v is not None]
    units = {cell.unit for cell in cells if cell.unit}
    axes.set_xlabel(", ".join(sorted(units)), fontsize=8, color=SOFT)
    if not values:
        axes.set_xticks([])
        return
    low, high = min(values), max(values)
    if low > 0 and high / low > _LOGARITHMIC:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.5, high * 1.5)
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.06 * (high - low) or max(abs(high) * 0.02, 0.01)
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    if high >= _THOUSANDS:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _points(axes: Axes, cell: Cell, y: float) -> None:
    if cell.low is not None and cell.high is not None:
        axes.plot([cell.low, cell.high], [y, y], color=_OURS, linewidth=2.2, alpha=0.55, solid_capstyle="round", zorder=2)
    if cell.ours is not None:
        axes.plot(cell.ours, y, "o", color=_OURS, markersize=6, markeredgecolor="white", markeredgewidth=0.8, zorder=3)
    if cell.published is not None:
        axes.plot(cell.published, y, "D", markersize=5.5, markerfacecolor="none", markeredgecolor=_PAPER, zorder=4)
    if cell.corrected is not None:
        axes.plot(cell.corrected, y, "x", markersize=5, color=_PAPER, zorder=4)


def _said(text: Shown) -> str:
    """Return ours, or the published number where ours is not there, with all marks."""
    known = text.ours != NOT_RUN
    marks = "".join((text.marks, text.flag, text.verdict, "" if known else NOT_RUN))
    return " ".join(filter(None, (text.ours if known else text.published, marks)))


def _say(axes: Axes, text: Shown, y: float) -> None:
    """Write it right of the panel, in the published number's colour where it is that."""
    axes.annotate(
        literal(_said(text)), (1, y), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
        va="center_baseline", fontsize=8.5, fontweight="bold" if text.rank == BEST else "normal",
        color=_PAPER if text.ours == NOT_RUN else INK,
    )  # fmt: skip
