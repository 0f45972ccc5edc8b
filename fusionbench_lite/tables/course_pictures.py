"""Pictures of the course of an adaptation: losses over the steps, and what the evaluations found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fusionbench_lite.evaluation.measures import Measure, shared
from fusionbench_lite.tables import style
from fusionbench_lite.tables.learned import Floats, describe, name_of, read_history
from fusionbench_lite.tables.records import Record
from fusionbench_lite.tables.rows import Rows
from fusionbench_lite.tables.style import CYCLE, DASHES, INK, MARGIN, SOFT, Sheet

PARTS = 20
"""A running mean covers this part of the steps."""

LOSS, AVERAGE, HELD_OUT = "loss", "average", "held_out"


def window_of(steps: int) -> int:
    """Return the length of the running mean: an odd number of steps, about a twentieth of all."""
    return max(1, steps // PARTS) | 1


def running_mean(values: Floats, window: int) -> Floats:
    """Return the mean over `window` values (odd) around each; near the ends over those of them that exist."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    position = np.arange(len(values))
    first, end = np.maximum(position - window // 2, 0), np.minimum(position + window // 2 + 1, len(values))
    return np.asarray((sums[end] - sums[first]) / (end - first))


def objective(record: Record) -> str:
    """What the losses of a run are: losses of different kinds share no axis."""
    settings = {name: entry.get("value") for name, entry in record.data["hyperparameters"].items()}
    method = record.method
    if settings.get("objective") == "cross_entropy":
        return "cross entropy on labels"
    if method == "twin_merging" and settings.get("router") != "entropy":
        return "cross entropy on the task number"
    if method == "pareto_merging" and settings.get("mode") == "distance":
        return "squared distance to the experts"
    if "surgery" in method or method == "metamerging":
        return "distance to the experts' features"
    return "entropy"


def draw_course(record: Record, history: pd.DataFrame, path: Path) -> list[Path]:
    """Draw the losses, in total and per task, and below them the metrics and held-out loss; returns the files written."""
    tasks = [task for task in record.tasks if f"{LOSS}/{task}" in history]
    columns = min(4, max(len(tasks), 1))
    rows = -(-len(tasks) // columns)
    held = HELD_OUT in history and bool(history[HELD_OUT].notna().any())
    measures = record.measures()
    names = {AVERAGE, *(f"{measure.name}/{task}" for task, measure in measures.items())}
    judged = history[[name for name in history if name in names]].dropna(how="all")
    width = 8.9
    small = (width - 2 * MARGIN - 0.4 - 0.35 * (columns - 1)) / columns
    high = 1.05
    tall = max(1.95, 0.15 * (len(judged.columns) + 1))
    body = 2.15 + rows * (high + 0.4) + (tall + 0.6 if held or len(judged) else 0) + 0.1
    window = window_of(int(history.index.max()))
    sheet = Sheet(
        width, body, f"Course of the adaptation: {name_of(record)}",
        f"{describe(record)}; loss: {objective(record)} per step, thick: mean over {window} steps",
    )
    left, top = MARGIN + 0.4, sheet.top + 0.2
    axes = sheet.axes(left, top, width - 2 * MARGIN - 0.4, 1.55)
    _loss(axes, history.get(LOSS), window, CYCLE[0])
    style.heading(axes, "total loss")
    top += 2.1
    for number, task in enumerate(tasks):
        row, column = divmod(number, columns)
        axes = sheet.axes(left + column * (small + 0.35), top + row * (high + 0.4), small, high)
        _loss(axes, history[f"{LOSS}/{task}"], window, CYCLE[2])
        style.heading(axes, task)
    top += rows * (high + 0.4) + 0.1
    if held or len(judged):
        half = (width - 2 * MARGIN - 0.4) * (0.56 if held else 1)
        _values(sheet.axes(left, top, half - 1.1, tall), judged, measures)
        if held:
            axes = sheet.axes(left + half + 0.45, top, width - MARGIN - left - half - 0.45, tall)
            _held_out(axes, history[HELD_OUT].dropna())
    sheet.text(width / 2, sheet.height - 0.1, "step", ha="center", va="bottom", fontsize=8.5, color=SOFT)
    return sheet.save(path, history.reset_index())


def _loss(axes: Axes, values: pd.Series | None, window: int, colour: str) -> None:
    style.grid(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    series = pd.Series(dtype=float) if values is None else values.dropna()
    if series.empty:
        axes.text(0.5, 0.5, "no losses recorded", transform=axes.transAxes, ha="center", fontsize=8, color=SOFT)
        return
    axes.plot(series.index, series, color=colour, linewidth=0.6, alpha=0.35)
    axes.plot(series.index, running_mean(series.to_numpy(), window), color=colour, linewidth=1.7)
    axes.margins(x=0.01)


def _values(axes: Axes, judged: pd.DataFrame, measures: Mapping[str, Measure]) -> None:
    """Every task's metric as a thin line with its name at the end, the average, where it means something, as a thick one."""
    whole = shared(measures.values())
    style.heading(axes, f"{whole.label} on the test split{whole.axis}" if whole else "metrics on the test split, units differ")
    style.grid(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ends: list[tuple[str, float, str, str]] = []
    for number, (task, measure) in enumerate(measures.items()):
        if f"{measure.name}/{task}" in judged:
            line = measure.scale * judged[f"{measure.name}/{task}"].dropna()
            colour = CYCLE[number % 7]
            axes.plot(line.index, line, color=colour, linewidth=1, linestyle=DASHES[number // 7 % 4], alpha=0.85)
            named = task if measure == whole or measure.label == "accuracy" else f"{task} ({measure.label})"
            ends.append((named, float(line.iloc[-1]), colour, "normal"))
    if whole is not None and AVERAGE in judged:
        line = whole.scale * judged[AVERAGE].dropna()
        axes.plot(line.index, line, color=INK, linewidth=2.2, marker="o", markersize=4, markeredgecolor="white")
        ends.append((f"average {line.iloc[-1]:.{whole.decimals}f}", float(line.iloc[-1]), INK, "bold"))
    _end_labels(axes, ends)


def _end_labels(axes: Axes, ends: Sequence[tuple[str, float, str, str]]) -> None:
    """Write names to the right of the lines' ends, kept apart from each other."""
    low, high = axes.get_ylim()
    inches = axes.get_position().height * axes.figure.get_figure(root=True).get_figheight()
    gap = (high - low) * 0.135 / inches
    places = style.spread([end[1] for end in ends], gap, low, high)
    for (text, value, colour, weight), place in zip(ends, places, strict=True):
        beside = axes.get_yaxis_transform()
        axes.plot([1.0, 1.045], [value, place], color="#C9D1D9", linewidth=0.6, transform=beside, clip_on=False)
        axes.set_ylim(low, high)
        named = style.literal(text)
        axes.text(1.055, place, named, fontsize=8, color=colour, fontweight=weight, va="center_baseline", transform=beside)


def _held_out(axes: Axes, values: pd.Series) -> None:
    style.heading(axes, "loss on held-out unlabelled examples")
    style.grid(axes)
    axes.plot(values.index, values, color=CYCLE[1], linewidth=1.8, marker="o", markersize=4, markeredgecolor="white")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A quantity of one row over the steps: mean and sample standard deviation over seeds (nan for one seed).

    `measure` says what the average over tasks is.
    """

    row: str
    quantity: str
    objective: str
    frame: pd.DataFrame
    measure: Measure | None = None


def curves(rows: Rows, records: Mapping[str, Record], seed: int | None = None) -> list[Curve]:
    """Return the curves of the adaptive rows of an experiment; losses as running means, over steps all seeds have."""
    drawn: list[Curve] = []
    for row in rows.rows:
        runs = [records[key] for key in row.keys if key in records]
        runs = [run for run in runs if seed is None or run.seeds.get("seed") == seed]
        pairs = [(run, history) for run in runs if (history := read_history(run)) is not None]
        for quantity in (LOSS, AVERAGE, HELD_OUT):
            series = [history[quantity].dropna() for _, history in pairs if quantity in history]
            series = [one for one in series if len(one)]
            if series:
                run = pairs[0][0]
                whole = shared(run.measures().values())
                scale = whole.scale if whole is not None and quantity == AVERAGE else 1
                drawn.append(Curve(
                    row=row.name, quantity=quantity, objective=objective(run), frame=_over_seeds(series, quantity, scale),
                    measure=whole,
                ))
    return drawn


def _over_seeds(series: Sequence[pd.Series], quantity: str, scale: int) -> pd.DataFrame:
    if quantity == LOSS:
        series = [pd.Series(running_mean(one.to_numpy(), window_of(len(one))), one.index) for one in series]
    if scale != 1:
        series = [scale * one for one in series]
    together = pd.concat(series, axis=1, join="inner")
    return pd.DataFrame({"mean": together.mean(axis=1), "std": together.std(axis=1, ddof=1), "seeds": len(series)})


def draw_experiment(rows: Rows, curves: Sequence[Curve], path: Path, note: str = "") -> list[Path]:
    """Draw the adaptive rows of an experiment over each other; returns the files written."""
    names = list(dict.fromkeys(curve.row for curve in curves))
    inks = {name: (CYCLE[number % 8], DASHES[number // 8 % 4]) for number, name in enumerate(names)}
    panels = _panels(curves)
    tag, wide = 0.4 + 0.068 * max(len(name) for name in names), 3.4
    # Two panels a row, each row as high as the names beside its panels need.
    highs = [max(2.2, *(0.15 * len(chosen) + 0.3 for _, chosen in panels[at : at + 2])) for at in range(0, len(panels), 2)]
    seeds = int(max(curve.frame["seeds"].max() for curve in curves))
    sheet = Sheet(
        2 * MARGIN + 0.4 + 2 * (wide + tag) + 0.5, sum(highs) + 0.55 * len(highs) + 0.1, rows.title,
        f"Adaptive rows of {rows.experiment}: running means of the loss, {_averages(curves)} at the evaluations"
        + (f"; mean of {seeds} seeds, bands ± one standard deviation" if seeds > 1 else "; one seed") + note,
    )
    for number, (title, chosen) in enumerate(panels):
        row, column = divmod(number, 2)
        top = sheet.top + 0.2 + sum(highs[:row]) + 0.55 * row
        _overlay(sheet.axes(MARGIN + 0.4 + column * (wide + tag + 0.5), top, wide, highs[row]), title, chosen, inks)
    sheet.text(sheet.width / 2, sheet.height - 0.1, "step", ha="center", va="bottom", fontsize=8.5, color=SOFT)
    numbers = [curve.frame.reset_index().assign(row=curve.row, quantity=curve.quantity) for curve in curves]
    return sheet.save(path, pd.concat(numbers)[["row", "quantity", "step", "mean", "std", "seeds"]])


def _panels(curves: Sequence[Curve]) -> list[tuple[str, list[Curve]]]:
    """Return (title, curves): losses of one kind and the averages over tasks first, then held-out losses and other kinds."""

    def of(quantity: str, kind: str | None = None) -> list[Curve]:
        return [c for c in curves if c.quantity == quantity and kind in (None, c.objective)]

    panels: list[tuple[str, list[Curve]]] = []
    for kind in dict.fromkeys(curve.objective for curve in curves):
        panels.append((f"loss: {kind}, summed over tasks", of(LOSS, kind)))
        if len(panels) == 1:
            panels.extend((f"average {name}{axis}", chosen) for (name, axis), chosen in _by_measure(of(AVERAGE)).items())
        panels.append((f"held-out loss: {kind}", of(HELD_OUT, kind)))
    return [panel for panel in panels if panel[1]]


def _by_measure(curves: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """Return the averages that share an axis, by label and unit."""
    axes: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        if curve.measure is not None:
            axes.setdefault((curve.measure.label, curve.measure.axis), []).append(curve)
    return axes


def _averages(curves: Sequence[Curve]) -> str:
    names = dict.fromkeys(curve.measure.label for curve in curves if curve.measure is not None)
    return "average " + (" or ".join(names) or "results")


def _overlay(axes: Axes, title: str, chosen: Sequence[Curve], inks: Mapping[str, tuple[str, Any]]) -> None:
    style.heading(axes, title)
    style.grid(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for curve in chosen:
        colour, dashes = inks[curve.row]
        steps, mean, std = curve.frame.index, curve.frame["mean"], curve.frame["std"].fillna(0.0)
        axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.13, linewidth=0)
        dots: dict[str, Any] = {} if curve.quantity == LOSS else {"marker": "o", "markersize": 3.5, "markeredgecolor": "white"}
        axes.plot(steps, mean, color=colour, linestyle=dashes, linewidth=1.6, **dots)
    axes.margins(x=0.01)
    ends = [(curve.row, float(curve.frame["mean"].iloc[-1]), inks[curve.row][0], "normal") for curve in chosen]
    _end_labels(axes, ends)
