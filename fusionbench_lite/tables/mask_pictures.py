"""Pictures of learned masks: which singular components are on, and how many of them against the intrinsic rank.

As Figures 10 and 4 of AdaRank (Lee et al. 2025); docs/decisions.md, D7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fusionbench_lite.tables import style
from fusionbench_lite.tables.layers import Place, arrange, short
from fusionbench_lite.tables.learned import COMMON, Floats, Learned, describe, name_of, value_of
from fusionbench_lite.tables.records import Record
from fusionbench_lite.tables.style import CYCLE, INK, MARGIN, SOFT, Sheet

ENERGY = 0.95
"""The part of Σ s² that the intrinsic rank keeps."""

LEARNED_COLOUR, INTRINSIC_COLOUR = CYCLE[0], CYCLE[1]


def intrinsic_rank(spectrum: Floats, energy: float = ENERGY) -> int:
    """Return the smallest k with Σ_{r≤k} s_r² ≥ energy · Σ s_r² of singular values [r]; 0 where all are zero."""
    squares = np.sort(np.asarray(spectrum, dtype=np.float64) ** 2)[::-1]
    total = squares.sum()
    if total == 0:
        return 0
    # Equality counts: a sum in another order must not push it over by a rounding error.
    return int(np.searchsorted(squares.cumsum(), energy * total * (1 - 1e-12))) + 1


def ranks(learned: Learned) -> pd.DataFrame:
    """Return one line per matrix and task: block, kind, learned rank Σ_r b_r, intrinsic rank (nan without a spectrum)."""
    lines = []
    for place in arrange(name for name in learned.masks if not name.endswith(COMMON)):
        bits, spectrum = learned.masks[place.name], learned.spectrum.get(place.name)
        for number, task in enumerate(learned.tasks):
            lines.append(
                {
                    "matrix": place.name, "block": place.block, "kind": short(place.kind), "task": task,
                    "components": bits.shape[1], "learned_rank": int(bits[number].sum()),
                    "intrinsic_rank": math.nan if spectrum is None else intrinsic_rank(spectrum[number]),
                }
            )
    return pd.DataFrame(lines)


def draw_masks(record: Record, learned: Learned, path: Path) -> list[Path]:
    """Draw per kind of matrix blocks by components, the shade saying for how many tasks the bit is on."""
    kinds = _by_kind(learned.masks)
    columns = 1 if len(kinds) == 1 else 2
    rows = -(-len(kinds) // columns)
    deepest = max(len(places) for places in kinds.values())
    wide, high = 4.3, float(np.clip(0.16 * deepest, 0.9, 3.2))
    sheet = Sheet(
        max(2 * MARGIN + 0.35 + columns * (wide + 0.4) + 0.35, 6.6), rows * (high + 0.62) + 0.05,
        f"Learned masks: {name_of(record)}",
        f"{describe(record)}; rows are blocks, columns singular components by falling singular value"
        + _started(_active(record, learned)),
    )
    lines = []
    image = None
    for number, (kind, places) in enumerate(kinds.items()):
        row, column = divmod(number, columns)
        axes = sheet.axes(MARGIN + 0.35 + column * (wide + 0.4), sheet.top + 0.2 + row * (high + 0.62), wide, high, plain=True)
        counts = _counts([learned.masks[one.name] for one in places])
        shared = places[0].name.endswith(COMMON)
        drawn = _mask_panel(axes, counts, places, 1 if shared else len(learned.tasks))
        image = image if shared and image is not None else drawn
        style.heading(axes, short(kind.removesuffix(COMMON)) + (", common block (on or off)" if shared else ""))
        start = None if shared else _active(record, learned)
        if start is not None and int(start * counts.shape[1]) < counts.shape[1]:
            axes.axvline(int(start * counts.shape[1]) - 0.5, color=CYCLE[1], linewidth=1.2, linestyle=(0, (3, 2)))
        if column == 0:
            axes.set_ylabel("block", fontsize=8.5, color=SOFT)
        if row == rows - 1 or number + columns >= len(kinds):
            axes.set_xlabel("component", fontsize=8.5, color=SOFT)
        lines += _mask_lines(places, counts)
    bar = sheet.figure.colorbar(
        image, cax=sheet.axes(sheet.width - MARGIN - 0.3, sheet.top + 0.2, 0.11, high), ticks=MaxNLocator(4, integer=True)  # type: ignore[arg-type]
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=SOFT)
    style.heading(bar.ax, "tasks", fontsize=8, color=SOFT)
    return sheet.save(path, pd.DataFrame(lines))


def _by_kind(masks: Mapping[str, Any]) -> dict[str, list[Place]]:
    kinds: dict[str, list[Place]] = {}
    for place in arrange(masks):
        kinds.setdefault(f"{place.stack} {place.kind}" if "decoder" in place.stack else place.kind, []).append(place)
    return kinds


def _counts(masks: Sequence[NDArray[np.bool_]]) -> Floats:
    """Return the number of tasks with the bit on, [blocks, largest r]; nan beyond a smaller matrix's components."""
    counts = np.full((len(masks), max(bits.shape[1] for bits in masks)), np.nan)
    for row, bits in enumerate(masks):
        counts[row, : bits.shape[1]] = bits.sum(0)
    return counts


def _mask_panel(axes: Axes, counts: Floats, places: Sequence[Place], most: int) -> Any:
    image = axes.imshow(counts, aspect="auto", cmap=style.HEAT, vmin=0, vmax=most, interpolation_stage="data")
    step = -(-len(places) // 12)
    axes.set_yticks(range(0, len(places), step), [one.block for one in places][::step])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#B8C0C8")
    return image


def _mask_lines(places: Sequence[Place], counts: Floats) -> list[dict[str, Any]]:
    return [
        {"matrix": one.name, "block": one.block, "kind": short(one.kind), "component": index, "tasks_on": int(count)}
        for one, line in zip(places, counts, strict=True) for index, count in enumerate(line) if not math.isnan(count)
    ]


def _started(active: float | None) -> str:
    if active is None:
        return ""
    return "; all started on" if active == 1 else "; dashed: components to the left started on"


def _active(record: Record, learned: Learned) -> float | None:
    """The part of the components that started on, None where the record does not say."""
    if "rank_ratio" not in record.data["hyperparameters"]:
        return None
    ratio = value_of(record, "rank_ratio")
    return 1 / len(learned.tasks) if ratio is None else ratio


def draw_ranks(record: Record, learned: Learned, path: Path) -> list[Path]:
    """Draw learned rank against intrinsic rank, per kind over blocks and per task over all matrices."""
    frame = ranks(learned)
    with_intrinsic = bool(frame["intrinsic_rank"].notna().any())
    kinds = list(dict.fromkeys(frame["kind"]))
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    wide, high = 2.25, 1.7
    missing = [] if with_intrinsic else ["The record holds no spectra of the task vectors, so the intrinsic rank is not drawn."]
    sheet = Sheet(
        max(2 * MARGIN + 0.4 + columns * (wide + 0.2), 7.2), rows * (high + 0.42) + (2.35 if len(learned.tasks) <= 8 else 2.9),
        f"Learned rank: {name_of(record)}",
        f"{describe(record)}; upper panels: dots are tasks, lines their mean"
        + (f"; intrinsic rank: the fewest components with {ENERGY:.0%} of the energy" if with_intrinsic else ""), missing,
    )
    for number, kind in enumerate(kinds):
        row, column = divmod(number, columns)
        axes = sheet.axes(MARGIN + 0.4 + column * (wide + 0.2), sheet.top + 0.2 + row * (high + 0.42), wide, high)
        _by_block(axes, frame[frame["kind"] == kind], with_intrinsic)
        style.heading(axes, kind)
        axes.set_ylim(0, _most(frame))
        if column:
            axes.tick_params(labelleft=False)
        if number == 0:
            axes.set_ylabel("rank", fontsize=8.5, color=SOFT)
    below = sheet.top + 0.2 + rows * (high + 0.42) + 0.32
    sheet.text(sheet.width / 2, below - 0.42, "block", fontsize=8.5, color=SOFT, ha="center")
    _by_task(sheet.axes(MARGIN + 0.4, below, sheet.width - 2 * MARGIN - 0.5, 1.45), frame, with_intrinsic)
    names = ["learned rank", "intrinsic rank"][: 1 + with_intrinsic]
    squares = [style.square(LEARNED_COLOUR), style.square(INTRINSIC_COLOUR)][: 1 + with_intrinsic]
    sheet.legend(sheet.width - MARGIN - 2.6, below - 0.21, squares, names)
    return sheet.save(path, frame)


def _most(frame: pd.DataFrame) -> float:
    return 1.08 * float(np.nanmax(frame[["learned_rank", "intrinsic_rank"]].to_numpy(dtype=float)))


def _series(with_intrinsic: bool) -> list[tuple[str, str, str, float]]:
    both = [("learned_rank", LEARNED_COLOUR, "o", -0.12), ("intrinsic_rank", INTRINSIC_COLOUR, "D", 0.12)]
    return both if with_intrinsic else [("learned_rank", LEARNED_COLOUR, "o", 0.0)]


def _by_block(axes: Axes, frame: pd.DataFrame, with_intrinsic: bool) -> None:
    blocks = list(dict.fromkeys(frame["block"]))
    for column, colour, marker, shift in _series(with_intrinsic):
        where = frame["block"].map(blocks.index) + shift
        axes.plot(where, frame[column], marker, color=colour, markersize=2.6, alpha=0.45, markeredgewidth=0)
        means = frame.groupby("block", sort=False)[column].mean()
        axes.plot([blocks.index(block) + shift for block in means.index], means, color=colour, linewidth=1.6)
    style.grid(axes)
    step = -(-len(blocks) // 12)
    axes.set_xticks(range(0, len(blocks), step), blocks[::step])
    axes.set_xlim(-0.5, len(blocks) - 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _by_task(axes: Axes, frame: pd.DataFrame, with_intrinsic: bool) -> None:
    """Per task the median over matrices, the middle half as a thick line and 5 to 95 % as a thin one."""
    tasks = list(dict.fromkeys(frame["task"]))
    for column, colour, marker, shift in _series(with_intrinsic):
        for number, task in enumerate(tasks):
            values = frame.loc[frame["task"] == task, column].dropna()
            low, quarter, middle, three, high = values.quantile([0.05, 0.25, 0.5, 0.75, 0.95])
            where = number + shift
            axes.plot([where, where], [low, high], color=colour, linewidth=1.0, alpha=0.6)
            axes.plot([where, where], [quarter, three], color=colour, linewidth=4, alpha=0.4, solid_capstyle="butt")
            axes.plot(where, middle, marker, color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.8)
    style.grid(axes)
    slant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(tasks) > 8 else {}
    axes.set_xticks(range(len(tasks)), [style.literal(task) for task in tasks], **slant)
    axes.tick_params(axis="x", labelsize=8.5, labelcolor=INK)
    axes.set_ylim(0, _most(frame))
    axes.set_ylabel("rank", fontsize=8.5, color=SOFT)
    style.heading(axes, "all matrices, by task: median, middle half, 5 to 95%")
