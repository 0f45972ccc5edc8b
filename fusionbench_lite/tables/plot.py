"""A table as one picture: the average of every method with its interval, beside every task's number."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fusionbench_lite.evaluation.columns import AVERAGE, AVERAGE_HEADER
from fusionbench_lite.evaluation.measures import PERCENT
from fusionbench_lite.registry import ADAPTERS, ADAPTIVE, DATA_FREE, FAMILIES, PER_TASK, REFERENCE, ROUTED, SOME, STATISTICS, SVD
from fusionbench_lite.tables.frame import Table
from fusionbench_lite.tables.notes import DAGGER
from fusionbench_lite.tables.ranking import BEST
from fusionbench_lite.tables.render import heading, ranks, reference

# Okabe and Ito's palette: told apart under every common colour blindness, and by lightness in grey print.
COLOURS = {
    REFERENCE: "#8A8F98", DATA_FREE: "#0072B2", SVD: "#E69F00", STATISTICS: "#CC79A7", ADAPTIVE: "#009E73",
    ADAPTERS: "#D55E00", ROUTED: "#7A5BA6", PER_TASK: "#56B4E9", SOME: "#B8A88A",
}
_INK, _SOFT, _FAINT = "#1F2933", "#616E7C", "#E4E7EB"
_HEAT = LinearSegmentedColormap.from_list("heat", ["#F7FAFC", "#D3E3F0", "#94BCDB", "#4A8AC0", "#1F5A96", "#12386B"])


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Sizes in inches. Rows are `row` high; `gap` sets the reference rows apart."""

    labels: float
    tasks: int
    rows: int
    references: int
    notes: int
    subtitle: int
    header: float
    row: float = 0.34
    gap: float = 0.16
    dots: float = 4.3
    cell: float = 0.58
    margin: float = 0.35

    @property
    def width(self) -> float:
        return 2 * self.margin + self.labels + self.dots + 0.25 + self.tasks * self.cell

    @property
    def top(self) -> float:
        return 0.74 + 0.2 * self.subtitle + 0.34 + self.header

    @property
    def bottom(self) -> float:
        return 0.62 + 0.175 * self.notes

    @property
    def body(self) -> float:
        return self.rows * self.row + (self.gap if 0 < self.references < self.rows else 0.0)

    @property
    def height(self) -> float:
        return self.top + self.body + self.bottom

    def axes(self, figure: Figure, left: float, width: float) -> Axes:
        """Axes over the body, in inches from its upper left corner: y grows downward and 0 is the upper edge."""
        box = (left / self.width, self.bottom / self.height, width / self.width, self.body / self.height)
        axes = figure.add_axes(box)
        axes.set_ylim(self.body, 0)
        axes.set_yticks([])
        axes.tick_params(length=0, labelsize=8.5, labelcolor=_SOFT)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def y(self, position: int) -> float:
        """The middle of a row."""
        gap = self.gap if 0 < self.references <= position else 0.0
        return (position + 0.5) * self.row + gap


def literal(text: object) -> str:
    """Return text that matplotlib prints as it stands: two signs of dollar, as in names of tasks, begin and end no formula."""
    return str(text).replace("$", r"\$")


def draw(table: Table, path: str | Path, *, dpi: int = 200) -> None:
    """Write the picture as PNG. The bytes depend on the table and the library versions only."""
    names = [f"{name} {DAGGER}" if flag else str(name) for name, flag in table.frame["uses_test_labels"].items()]
    labels = 0.25 + 0.078 * max(len(name) for name in names)
    width = 0.7 + labels + 4.55 + 0.58 * len(table.tasks)
    notes = [line for note in table.notes for line in textwrap.wrap(note, int(width * 16.5))]
    subtitle = textwrap.wrap(table.question, int(width * 12.5))
    header = 0.12 + 0.058 * max(len(task) for task in table.tasks)
    layout = _Layout(
        labels=labels, tasks=len(table.tasks), rows=len(names), references=sum(reference(table)), notes=len(notes),
        subtitle=len(subtitle), header=max(header, 0.4),
    )
    figure = Figure(figsize=(layout.width, layout.height), facecolor="white")
    FigureCanvasAgg(figure)
    _titles(figure, layout, table, subtitle, notes)
    _dots(layout.axes(figure, layout.margin + labels, layout.dots), layout, table, names)
    heat_left = layout.margin + labels + layout.dots + 0.25
    _heat(layout.axes(figure, heat_left, layout.tasks * layout.cell), layout, table)
    figure.savefig(path, format="png", dpi=dpi, metadata={"Software": None})


def _titles(figure: Figure, layout: _Layout, table: Table, subtitle: list[str], notes: list[str]) -> None:
    left = layout.margin / layout.width

    def write(inches: float, text: str, **style: Any) -> None:
        figure.text(left, 1 - inches / layout.height, literal(text), va="top", ha="left", **style)

    write(0.28, heading(table), fontsize=14, fontweight="bold", color=_INK)
    for number, line in enumerate(subtitle):
        write(0.62 + 0.2 * number, line, fontsize=9.5, color=_SOFT)
    for number, line in enumerate(notes):
        write(layout.height - layout.bottom + 0.5 + 0.175 * number, line, fontsize=7.5, color=_SOFT)
    present = [name for name in FAMILIES if (table.frame["family"] == name).any()]
    handles = [Line2D([], [], marker="o", linestyle="", markersize=6.5, color=COLOURS[name]) for name in present]
    inches = sum(0.062 * len(name) + 0.34 for name in present)  # of their names at 9 points, with markers and gaps
    figure.legend(
        handles,
        present,
        loc="upper left",
        bbox_to_anchor=(left, 1 - (0.66 + 0.2 * len(subtitle)) / layout.height),
        ncols=len(present) if inches < layout.width - 2 * layout.margin else -(-len(present) // 2),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        borderaxespad=0,
        borderpad=0,
        handletextpad=0.1,
        columnspacing=1.4,
    )


def _dots(axes: Axes, layout: _Layout, table: Table, names: list[str]) -> None:
    """The average of every row as a dot in its family's colour, its 95 % interval as a line, one tick per seed."""
    frame, measure = table.frame, table.measures.get(AVERAGE)
    if measure is None:
        low, high = 0.0, 1.0
    else:
        low, high = float(frame[f"{AVERAGE}_low"].min()), float(frame[f"{AVERAGE}_high"].max())
    span = max(high - low, 2.0 if measure is None or measure.unit == PERCENT else 1e-6)
    axes.set_xlim(low - 0.05 * span, high + 0.16 * span)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    ticks = ", ticks: single seeds" if table.seeds > 1 else ""
    if measure is None:
        axes.set_xticks([])
        about = "No average: units or directions differ"
    else:
        about = f"Average over tasks{measure.axis}, 95% interval{ticks}"
    axes.set_xlabel(about, fontsize=8.5, color=_SOFT)
    best = ranks(table)[AVERAGE_HEADER]
    for position, (row, name) in enumerate(zip(frame.itertuples(), names, strict=True)):
        y, colour = layout.y(position), COLOURS[str(row.family)]
        value, left, right = (float(frame[f"{AVERAGE}{end}"].iloc[position]) for end in ("", "_low", "_high"))
        bold = "bold" if best.iloc[position] == BEST else "normal"
        axes.annotate(
            literal(name),
            (0, y),
            xycoords=("axes fraction", "data"),
            xytext=(-8, 0),
            textcoords="offset points",
            ha="right",
            va="center_baseline",
            fontsize=9.5,
            fontweight=bold,
            color=_SOFT if row.family == REFERENCE else _INK,
        )
        if math.isnan(value):
            if not row.seeds:
                axes.annotate("no record", (low, y), va="center_baseline", fontsize=8, color=_SOFT)
            continue
        if row.family == REFERENCE:
            axes.plot([value, value], [y, layout.body], color=colour, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        axes.plot([left, right], [y, y], color=colour, linewidth=2.2, solid_capstyle="round", alpha=0.55, zorder=2)
        axes.plot(value, y, "o", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=1, zorder=3)
        if row.seeds > 1:
            seeds = table.long[(table.long["label"] == row.Index) & (table.long["task"] == AVERAGE)]["value"]
            axes.plot(seeds, [y] * len(seeds), "|", color=_INK, markersize=6, markeredgewidth=0.9, zorder=4)
            right = max(right, float(seeds.max()))
        axes.annotate(
            f"{value:.{table.decimals(AVERAGE)}f}",
            (right, y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=9,
            fontweight=bold,
            color=_INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )


def _ends(table: Table, task: str) -> tuple[float, float]:
    """Return the lowest and highest value of the tasks in the unit and direction of this one, which share their shades."""
    kinds = {name: (m.unit, m.direction) for name, m in table.measures.items()}
    values = table.frame[[name for name in table.tasks if kinds.get(name) == kinds.get(task)]]
    return float(values.min().min()), float(values.max().max())


def _heat(axes: Axes, layout: _Layout, table: Table) -> None:
    """Every task's number on its shade, dark for good; the best of the ranked rows bold."""
    values = table.frame[list(table.tasks)]
    ranked = ranks(table)
    axes.set_xlim(0, len(table.tasks))
    axes.set_xticks([])
    for column, task in enumerate(table.tasks):
        low, high = _ends(table, task)
        axes.annotate(
            literal(task),
            (column + 0.5, 0),
            xytext=(0, 5),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=9,
            color=_INK,
            annotation_clip=False,
        )
        for position, value in enumerate(values[task]):
            if math.isnan(value):
                continue
            shade = (value - low) / (high - low) if high > low else 0.5
            shade = shade if table.higher(task) else 1 - shade
            top = layout.y(position) - layout.row / 2
            axes.fill(
                [column + 0.02, column + 0.98, column + 0.98, column + 0.02],
                [top + 0.01, top + 0.01, top + layout.row - 0.01, top + layout.row - 0.01],
                color=_HEAT(shade),
                linewidth=0,
            )
            axes.text(
                column + 0.5,
                layout.y(position),
                f"{value:.{table.decimals(task)}f}",
                ha="center",
                va="center_baseline",
                fontsize=8.5,
                fontweight="bold" if ranked[task].iloc[position] == BEST else "normal",
                color="white" if shade > 0.55 else _INK,
            )
