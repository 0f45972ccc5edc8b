"""Pictures of learned coefficients: a map of tasks by tensors, and their course over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize, TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from fusionbench_lite.tables import style
from fusionbench_lite.tables.layers import FAMILIES, Place, arrange, groups
from fusionbench_lite.tables.learned import COMMON, Floats, Learned, Trajectory, describe, name_of, start_of
from fusionbench_lite.tables.records import Record
from fusionbench_lite.tables.style import CYCLE, INK, MARGIN, SOFT, Sheet

FAMILY_COLOURS = dict(zip(FAMILIES, (CYCLE[0], CYCLE[4], CYCLE[3], CYCLE[6], CYCLE[2]), strict=True))
ROW, SIDE = 0.3, 1.75


def table(learned: Learned, order: Sequence[str] = ()) -> tuple[list[Place], pd.DataFrame]:
    """Return the tensors in model order and their coefficients, one column per task (and one for a common block)."""
    names = [name for name in learned.coefficients if not name.endswith(COMMON)]
    places = arrange(names, order)
    frame = pd.DataFrame(
        [learned.coefficients[place.name] for place in places], columns=list(learned.tasks), dtype=np.float64
    )
    common = [learned.coefficients.get(place.name + COMMON) for place in places]
    if any(value is not None for value in common):
        frame["common block"] = [np.nan if value is None else value[0] for value in common]
    return places, frame


def draw_map(record: Record, learned: Learned, path: Path, order: Sequence[str] = ()) -> list[Path]:
    """Draw the coefficients, tasks by tensors, white where they started; returns the files written."""
    places, frame = table(learned, order)
    numbers = pd.DataFrame(
        {"tensor": [p.name for p in places], "block": [p.block for p in places], "family": [p.family for p in places]}
    ).join(frame)
    values = frame.to_numpy().T
    start = start_of(record)
    constant = bool(np.nanmax(np.nanmax(values, 1) - np.nanmin(values, 1)) < 1e-5)
    labels = 0.25 + 0.085 * max(len(task) for task in frame.columns)
    width = 1.1 if constant else float(np.clip(0.075 * len(places), 3.6, 10.5))
    height = ROW * len(frame.columns)
    sheet = Sheet(
        max(2 * MARGIN + labels + width + 0.2 + SIDE + 0.75, 6.4), height + (0.65 if constant else 1.1),
        f"Learned coefficients: {name_of(record)}", _subtitle(record, start, constant),
    )
    left, top = MARGIN + labels, sheet.top + 0.2
    axes = sheet.axes(left, top, width, height, plain=True)
    norm = _norm(values, start)
    colours = style.DIVERGING if start is not None else style.HEAT
    shown = values[:, :1] if constant else values
    image = axes.imshow(shown, aspect="auto", cmap=colours, norm=norm, interpolation="nearest")
    axes.set_yticks(range(len(frame.columns)), [style.literal(task) for task in frame.columns])
    axes.tick_params(axis="y", labelsize=9, labelcolor=INK)
    if constant:
        axes.set_xticks([0], ["every tensor"])
        _write_values(axes, shown[:, 0], norm)
    else:
        _blocks(axes, places, width)
        _families(sheet, places, left, top + height + 0.3, width)
    _distribution(sheet.axes(left + width + 0.2, top, SIDE, height), values, start)
    bar = sheet.axes(left + width + 0.2 + SIDE + 0.12, top, 0.11, height)
    _bar(sheet, image, bar, values)
    return sheet.save(path, numbers)


def _subtitle(record: Record, start: float | None, constant: bool) -> str:
    parts = [describe(record)]
    if start is not None:
        parts.append(f"white is the start, {start:.4g}")
    parts.append("one coefficient per task" if constant else "one column per tensor in model order, numbers: blocks")
    return "; ".join(parts)


def _norm(values: Floats, start: float | None) -> Normalize:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if start is None:
        return Normalize(low, high if high > low else low + 1)
    reach = max(high - start, start - low, 1e-6)
    return TwoSlopeNorm(start, start - reach, start + reach)


def _bar(sheet: Sheet, image: Any, axes: Axes, values: Floats) -> None:
    bar = sheet.figure.colorbar(image, cax=axes)
    bar.outline.set_visible(False)
    # The scale is the same on both sides of the start; only the part that occurs is shown.
    axes.set_ylim(float(np.nanmin(values)), max(float(np.nanmax(values)), float(np.nanmin(values)) + 1e-6))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(length=0, labelsize=8, labelcolor=SOFT)


def _write_values(axes: Axes, values: Floats, norm: Normalize) -> None:
    for row, value in enumerate(values):
        strong = abs(float(norm(value)) - 0.5) > 0.28
        axes.text(0, row, f"{value:.3f}", ha="center", va="center_baseline", fontsize=9, color="white" if strong else INK)


def _blocks(axes: Axes, places: Sequence[Place], width: float) -> None:
    """Set blocks apart by white lines and number them below, as many as there is room for."""
    runs = groups(places)
    for _, first, _ in runs[1:]:
        axes.axvline(first - 0.5, color="white", linewidth=1.4 if len(places) < 120 else 0.9)
    character = 0.065 * len(places) / width
    ticks: list[float] = []
    texts: list[str] = []
    for label, first, end in runs:
        middle = (first + end - 1) / 2
        if not ticks or middle - ticks[-1] >= character * ((len(texts[-1]) + len(label)) / 2 + 0.7):
            ticks.append(middle)
            texts.append(label)
    axes.set_xticks(ticks, texts)
    axes.tick_params(axis="x", labelsize=8, pad=2)


def _families(sheet: Sheet, places: Sequence[Place], left: float, top: float, width: float) -> None:
    """A strip below the map that says what each tensor is, with its legend."""
    axes = sheet.axes(left, top, width, 0.1, plain=True)
    colours = ListedColormap([FAMILY_COLOURS[family] for family in FAMILIES])
    codes = np.array([[FAMILIES.index(place.family) for place in places]])
    axes.imshow(codes, aspect="auto", cmap=colours, norm=BoundaryNorm(range(len(FAMILIES) + 1), len(FAMILIES)))
    for _, first, _ in groups(places)[1:]:
        axes.axvline(first - 0.5, color="white", linewidth=1.4 if len(places) < 120 else 0.9)
    present = [family for family in FAMILIES if any(place.family == family for place in places)]
    sheet.legend(left, top + 0.24, [style.square(FAMILY_COLOURS[family]) for family in present], present)


def _distribution(axes: Axes, values: Floats, start: float | None) -> None:
    """Per task the median over tensors, the middle half as a thick line and 5 to 95 % as a thin one."""
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    style.grid(axes, "x")
    if start is not None:
        axes.axvline(start, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
    for row, line in enumerate(values):
        low, quarter, middle, three, high = np.nanquantile(line, [0.05, 0.25, 0.5, 0.75, 0.95])
        axes.plot([low, high], [row, row], color=CYCLE[0], linewidth=1.0, alpha=0.6)
        axes.plot([quarter, three], [row, row], color=CYCLE[0], linewidth=3.6, alpha=0.45, solid_capstyle="butt")
        axes.plot(middle, row, "o", color=CYCLE[0], markersize=5, markeredgecolor="white", markeredgewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    style.heading(axes, "median, middle half, 5 to 95%", color=SOFT, fontsize=7)


def draw_trajectory(record: Record, trajectory: Trajectory, tasks: Sequence[str], path: Path) -> list[Path]:
    """Draw per task the median coefficient over tensors with its quantile bands over the steps; returns the files."""
    levels = np.nanquantile(trajectory.coefficients, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)  # [5, k, T]
    names = ("q05", "q25", "median", "q75", "q95")
    numbers = pd.DataFrame(
        [
            {"task": task, "step": int(step), **{name: levels[q, k, t] for q, name in enumerate(names)}}
            for t, task in enumerate(tasks) for k, step in enumerate(trajectory.steps)
        ]
    )
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    wide, high = 2.1, 1.45
    start = start_of(record)
    sheet = Sheet(
        max(2 * MARGIN + 0.4 + columns * (wide + 0.2), 6.4), rows * (high + 0.32) + 0.3,
        f"Course of the coefficients: {name_of(record)}",
        f"{describe(record)}; median over {len(trajectory.names)} tensors, middle half dark, 5 to 95% light"
        + (f"; dashed: the start, {start:.4g}" if start is not None else ""),
    )
    low, top = float(levels.min()), float(levels.max())
    pad = max(0.06 * (top - low), 1e-3)
    for number, task in enumerate(tasks):
        row, column = divmod(number, columns)
        axes = sheet.axes(MARGIN + 0.4 + column * (wide + 0.2), sheet.top + 0.2 + row * (high + 0.32), wide, high)
        _bands(axes, trajectory.steps, levels[:, :, number], start)
        axes.set_ylim(low - pad, top + pad)
        style.heading(axes, task)
        if column:
            axes.tick_params(labelleft=False)
        if number + columns < len(tasks):
            axes.tick_params(labelbottom=False)
    sheet.text(sheet.width / 2, sheet.height - 0.12, "step", ha="center", va="bottom", fontsize=8.5, color=SOFT)
    return sheet.save(path, numbers)


def _bands(axes: Axes, steps: Any, levels: Floats, start: float | None) -> None:
    style.grid(axes)
    for outer, alpha in ((0, 0.16), (1, 0.3)):
        axes.fill_between(steps, levels[outer], levels[4 - outer], color=CYCLE[0], alpha=alpha, linewidth=0)
    if start is not None:
        axes.axhline(start, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
    axes.plot(steps, levels[2], color=CYCLE[0], linewidth=1.6)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.01)
