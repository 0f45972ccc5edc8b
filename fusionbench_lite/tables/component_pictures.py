"""Pictures of what single singular components do to the losses, as Figures 1 and 2 of AdaRank (Lee et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import AsinhNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fusionbench_lite.registry import ADAPTIVE
from fusionbench_lite.tables import style
from fusionbench_lite.tables.families import family, label
from fusionbench_lite.tables.learned import Floats
from fusionbench_lite.tables.style import CYCLE, INK, MARGIN, SOFT, Sheet

FIRST, EXACT = "first_order/", "exact/"
COLUMNS, WIDE = 4, 2.3


def by_component(frame: pd.DataFrame, tasks: Sequence[str]) -> Floats:
    """Return the first-order changes [task of the component, component, task of the loss], summed over matrices."""
    columns = [FIRST + task for task in tasks]
    most = int(frame["component"].max()) + 1
    sums = np.zeros((len(tasks), most, len(tasks)))
    for number, task in enumerate(tasks):
        sums_of_task = frame[frame["task"] == task].groupby("component")[columns].sum()
        sums[number, sums_of_task.index] = sums_of_task.to_numpy()
    return sums


def own_and_others(frame: pd.DataFrame, tasks: Sequence[str], kind: str = FIRST) -> tuple[Floats, Floats]:
    """Return per line the change of the component's own task's loss and the sum of the other tasks' changes."""
    values = frame[[kind + task for task in tasks]].to_numpy(dtype=np.float64)
    its_task = values[np.arange(len(frame)), [tasks.index(task) for task in frame["task"]]]
    return its_task, values.sum(1) - its_task


def draw(frame: pd.DataFrame, tasks: Sequence[str], path: Path, method: str, subtitle: str) -> list[Path]:
    """Draw the changes of every loss by component, own gain against others' loss, and first order against exact."""
    tasks = list(tasks)
    sums = by_component(frame, tasks)
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    names = 0.15 + 0.075 * max(map(len, tasks))
    high = float(np.clip(0.15 * len(tasks), 0.6, 2.6))
    upper = rows * (high + 0.5)
    exact = bool(frame[[EXACT + task for task in tasks]].notna().any(axis=None))
    width = max(2 * MARGIN + names + columns * (WIDE + 0.15) + 0.55, 8.4)
    of = label(method) if family(method) != ADAPTIVE else f"the start of {label(method)}"
    sheet = Sheet(width, upper + 3.4, f"Adding single components to {of}", subtitle)
    left, top = MARGIN + names, sheet.top + 0.2
    # Leading components move losses by orders of magnitude more than the rest: linear near 0, logarithmic beyond.
    reach = float(np.abs(sums).max()) or 1.0
    norm = AsinhNorm(max(float(np.median(np.abs(sums))), 1e-4 * reach), -reach, reach)
    image = None
    for number, task in enumerate(tasks):
        row, column = divmod(number, columns)
        axes = sheet.axes(left + column * (WIDE + 0.15), top + row * (high + 0.5), WIDE, high, plain=True)
        image = axes.imshow(sums[number].T, aspect="auto", cmap=style.DIVERGING, norm=norm, interpolation="nearest")
        _own_row(axes, number)
        style.heading(axes, f"of {task}")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if column == 0:
            axes.set_yticks(range(len(tasks)), [style.literal(task) for task in tasks])
            axes.tick_params(axis="y", labelsize=7.5, labelcolor=INK)
    bar = sheet.figure.colorbar(image, cax=sheet.axes(width - MARGIN - 0.5, top, 0.11, high))  # type: ignore[arg-type]
    _bar(bar.ax, norm, reach)
    sheet.text(left, top + upper - 0.2, "rows: whose loss; columns: component index; colour: change of the loss, to first order",
               fontsize=8, color=SOFT)
    below = top + upper + 0.4
    room = (width - 2 * MARGIN - 0.5 - 0.75 * (1 + exact)) / (2 + exact)
    step = room + 0.75
    _scatter(sheet.axes(MARGIN + 0.5, below, room, 2.35), frame, tasks)
    _by_index(sheet.axes(MARGIN + 0.5 + step, below, room, 2.35), sums, len(tasks))
    if exact:
        _check(sheet.axes(MARGIN + 0.5 + 2 * step, below, room, 2.35), frame, tasks)
    return sheet.save(path, frame)


def _own_row(axes: Axes, number: int) -> None:
    """Frame the row of the component's own task."""
    low, high = axes.get_xlim()
    axes.plot([low, high, high, low, low], np.array([-1, -1, 1, 1, -1]) * 0.5 + number, color=INK, linewidth=1.1, clip_on=False)


def _bar(axes: Axes, norm: AsinhNorm, reach: float) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    ticks = [-reach, -reach / 30, 0.0, reach / 30, reach]
    axes.set_yticks(ticks, ["0" if tick == 0 else f"{tick:+.1g}" for tick in ticks])
    axes.minorticks_off()
    axes.tick_params(length=0, labelsize=7.5, labelcolor=SOFT)


def _scatter(axes: Axes, frame: pd.DataFrame, tasks: Sequence[str]) -> None:
    """Every component of every matrix: its own task's change against the sum of the others'; leading ones dark."""
    its_task, others = own_and_others(frame, list(tasks))
    order = np.argsort(-frame["component"].to_numpy())
    depth = frame["component"].to_numpy() / max(int(frame["component"].max()), 1)
    reach = max(float(np.abs(its_task).max()), float(np.abs(others).max())) or 1.0
    width = max(float(np.median(np.abs(np.concatenate([its_task, others])))), 1e-4 * reach)
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("asinh", linear_width=width)
    axes.axhline(0, color="#B8C0C8", linewidth=0.8)
    axes.axvline(0, color="#B8C0C8", linewidth=0.8)
    axes.scatter(its_task[order], others[order], c=1 - depth[order] ** 0.5, cmap=style.HEAT, vmin=-0.4, vmax=1, s=5, linewidths=0)
    axes.set_xlim(-2.5 * reach, 2.5 * reach)
    axes.set_ylim(-8 * reach, 8 * reach)  # room for the words in the corners
    # Corners: the share of all components there.
    for x, y, own_sign, other_sign, text in (
        (0.02, 0.97, -1, 1, "helps own, harms others"), (0.98, 0.03, 1, -1, "the reverse"),
        (0.02, 0.03, -1, -1, "helps both"), (0.98, 0.97, 1, 1, "harms both"),
    ):
        share = float(np.mean((np.sign(its_task) == own_sign) & (np.sign(others) == other_sign)))
        axes.text(x, y, f"{text} {share:.0%}", transform=axes.transAxes, fontsize=7.5, color=INK,
                  ha="left" if x < 0.5 else "right", va="bottom" if y < 0.5 else "top")
    _asinh_ticks(axes.xaxis, reach, width)
    _asinh_ticks(axes.yaxis, reach, width)
    axes.set_xlabel("change of its own task's loss", fontsize=8, color=SOFT)
    axes.set_ylabel("sum of the other tasks' changes", fontsize=8, color=SOFT)
    style.heading(axes, "every component; dark: leading")


def _asinh_ticks(axis: Axis, reach: float, width: float) -> None:
    """Ticks at 0, at powers of ten near the largest value and in the middle of the logarithmic part."""
    powers = sorted({round(math.log10(value)) for value in (reach, (reach * width) ** 0.5)})
    ticks = [-(10.0**power) for power in reversed(powers)] + [0.0] + [10.0**power for power in powers]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda tick, _: _power(tick)))
    axis.set_minor_locator(NullLocator())


def _power(tick: float) -> str:
    return "0" if tick == 0 else f"{'−' if tick < 0 else '+'}$10^{{{round(math.log10(abs(tick)))}}}$"


def _by_index(axes: Axes, sums: Floats, tasks: int) -> None:
    """By component index the mean over tasks of the own loss's change and of the others' sum."""
    its_task = np.mean([sums[number, :, number] for number in range(tasks)], axis=0)
    others = np.mean([sums[number].sum(1) - sums[number, :, number] for number in range(tasks)], axis=0)
    reach = max(float(np.abs(its_task).max()), float(np.abs(others).max())) or 1.0
    width = max(float(np.median(np.abs(np.concatenate([its_task, others])))), 1e-4 * reach)
    axes.set_yscale("asinh", linear_width=width)
    style.grid(axes)
    axes.axhline(0, color="#B8C0C8", linewidth=0.8)
    for values, colour, text in ((its_task, CYCLE[0], "own loss"), (others, CYCLE[1], "other losses, summed")):
        axes.plot(values, color=colour, linewidth=1.3, label=text)
    _asinh_ticks(axes.yaxis, reach, width)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right", handlelength=1.2)
    axes.set_xlabel("component index", fontsize=8, color=SOFT)
    style.heading(axes, "change by index, mean over tasks")


def _check(axes: Axes, frame: pd.DataFrame, tasks: Sequence[str]) -> None:
    """First order against evaluation, for the components that were evaluated."""
    evaluated = frame.dropna(subset=[EXACT + task for task in tasks])
    first = evaluated[[FIRST + task for task in tasks]].to_numpy().ravel()
    exact = evaluated[[EXACT + task for task in tasks]].to_numpy().ravel()
    reach = 1.05 * max(float(np.abs(first).max()), float(np.abs(exact).max()), 1e-12)
    axes.plot([-reach, reach], [-reach, reach], color="#B8C0C8", linewidth=0.9)
    axes.scatter(first, exact, s=6, color=CYCLE[1], alpha=0.5, linewidths=0)
    style.grid(axes, "both")
    for locate in (axes.xaxis, axes.yaxis):
        locate.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("to first order", fontsize=8, color=SOFT)
    axes.set_ylabel("evaluated", fontsize=8, color=SOFT)
    style.heading(axes, f"check: leading {int(evaluated['component'].max()) + 1} components evaluated")
