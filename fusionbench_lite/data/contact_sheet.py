"""`python -m fusionbench_lite.data.contact_sheet docs/mini8.png`: examples of the eight drawn tasks on one sheet."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fusionbench_lite.data import mini
from fusionbench_lite.paths import atomic_file


def draw(path: Path, columns: int = 12, seed: int = 0) -> Path:
    """Write a sheet with one row per task and `columns` test images of different classes, as far as there are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = mini.names()
    figure = Figure(figsize=(1.0 * columns + 1.8, 1.22 * len(names)), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(names), columns, squeeze=False)
    figure.subplots_adjust(left=1.7 / (columns + 1.8), right=0.995, top=0.985, bottom=0.035, wspace=0.08, hspace=0.28)
    for row, name in zip(axes, names, strict=True):
        images, labels = mini.draw(name, "test", seed, 40 * columns)
        classes = mini.DRAWINGS[name].classes
        for axis, index in zip(row, _varied(labels, columns, len(classes)), strict=True):
            axis.imshow(images[index], interpolation="nearest")
            axis.set_axis_off()
            axis.text(
                0.5, -0.05, classes[labels[index]], ha="center", va="top", size=7, color="#555555",
                transform=axis.transAxes,
            )
        row[0].text(
            -0.2, 0.62, name.replace("_", " "), ha="right", va="center", size=12, weight="bold", transform=row[0].transAxes
        )
        row[0].text(
            -0.2, 0.34, f"{len(classes)} classes", ha="right", va="center", size=8, color="#777777",
            transform=row[0].transAxes,
        )
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _varied(labels: np.ndarray, count: int, classes: int) -> list[int]:
    """Return the indices of `count` examples: the first of each class, then the second, and so on."""
    seen = [np.flatnonzero(labels == label) for label in range(classes)]
    return [int(seen[number % classes][number // classes]) for number in range(count)]


if __name__ == "__main__":
    print(draw(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/mini8.png")))
