"""What all pictures share: colours, a sheet measured in inches, and files of the same bytes for the same numbers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fusionbench_lite.paths import atomic_file
from fusionbench_lite.tables import plot

literal = plot.literal
INK, SOFT, FAINT, HEAT = plot._INK, plot._SOFT, plot._FAINT, plot._HEAT
DIVERGING = LinearSegmentedColormap.from_list(
    "diverging", ["#12386B", "#2F74B5", "#94BCDB", "#F7F7F5", "#F2B98A", "#D55E00", "#7A2E00"]
)
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#1F2933")
"""Okabe and Ito's palette, as in plot.py, with a grey and an ink."""
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))

MARGIN, DPI = 0.35, 200


class Sheet:
    """A page with a title; `axes` places panels in inches from the upper left corner, `top` is where they may begin."""

    def __init__(self, width: float, body: float, title: str, subtitle: str = "", notes: Sequence[str] = ()) -> None:
        lines = textwrap.wrap(subtitle, int(width * 12.5))
        below = [line for note in notes for line in textwrap.wrap(note, int(width * 15))]
        self.top = 0.8 + 0.2 * len(lines)
        self.width = width
        self.height = self.top + body + 0.175 * len(below) + (0.3 if below else 0.2)
        self.figure = Figure(figsize=(self.width, self.height), facecolor="white")
        FigureCanvasAgg(self.figure)
        self.text(MARGIN, 0.28, title, fontsize=14, fontweight="bold", color=INK)
        for number, line in enumerate(lines):
            self.text(MARGIN, 0.62 + 0.2 * number, line, fontsize=9.5, color=SOFT)
        for number, line in enumerate(below):
            self.text(MARGIN, self.top + body + 0.12 + 0.175 * number, line, fontsize=7.5, color=SOFT)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Write text whose upper left corner lies there."""
        given = {"va": "top", "ha": "left", **style}
        self.figure.text(left / self.width, 1 - top / self.height, literal(text), **given)

    def axes(self, left: float, top: float, width: float, height: float, *, plain: bool = False) -> Axes:
        """Return a panel; `plain` has neither frame nor ticks."""
        axes = self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )
        axes.tick_params(length=0, labelsize=8, labelcolor=SOFT)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom") and not plain)
            spine.set_color("#B8C0C8")
        if plain:
            axes.set_xticks([])
            axes.set_yticks([])
        return axes

    def legend(self, left: float, top: float, handles: Sequence[Any], labels: Sequence[str], columns: int | None = None) -> None:
        """Place a legend without a frame whose upper left corner lies there."""
        self.figure.legend(
            list(handles), [literal(label) for label in labels], loc="upper left",
            bbox_to_anchor=(left / self.width, 1 - top / self.height),
            ncols=columns or max(len(labels), 1), frameon=False, fontsize=8.5, labelcolor=INK, borderaxespad=0, borderpad=0,
            handletextpad=0.5, columnspacing=1.4, handlelength=1.6,
        )

    def save(self, path: Path, numbers: pd.DataFrame) -> list[Path]:
        """Write the picture as PNG and its numbers beside it as CSV, each whole or not at all; return both paths."""
        with atomic_file(path) as temporary:
            self.figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
        with atomic_file(path.with_suffix(".csv")) as temporary:
            numbers.to_csv(temporary, index=False, float_format="%.7g", lineterminator="\n")
        return [path, path.with_suffix(".csv")]


def square(colour: Any) -> Line2D:
    """Return a legend's handle for an area of this colour."""
    return Line2D([], [], marker="s", linestyle="", markersize=6.5, color=colour)


def grid(axes: Axes, axis: str = "y") -> None:
    """Draw faint lines behind the data."""
    axes.grid(axis=axis, color=FAINT, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def heading(axes: Axes, text: str, **style: Any) -> None:
    """Write a panel's name above its left edge."""
    axes.set_title(literal(text), **{"loc": "left", "fontsize": 9, "color": INK, "pad": 4, **style})


def spread(places: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Move labels apart to at least `gap` from each other, as near to their places as their order allows.

    They stay between `low` and `high`, closer together where there is no room for the gap.
    """
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    order = sorted(range(len(places)), key=lambda number: places[number])
    groups: list[tuple[list[int], float]] = []
    for number in order:
        members, centre = [number], places[number]
        while groups and groups[-1][1] + gap * (len(groups[-1][0]) + len(members)) / 2 > centre:
            earlier, middle = groups.pop()
            centre = (middle * len(earlier) + centre * len(members)) / (len(earlier) + len(members))
            members = earlier + members
        groups.append((members, centre))
    moved = [0.0] * len(places)
    for members, centre in groups:
        for rank, number in enumerate(members):
            moved[number] = centre + gap * (rank - (len(members) - 1) / 2)
    for rank, number in enumerate(order):
        moved[number] = max(moved[number], low + gap * rank)
    for rank, number in enumerate(reversed(order)):
        moved[number] = min(moved[number], high - gap * rank)
    return moved
