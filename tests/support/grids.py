"""Grids made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusionbench_lite.tables.cells.grid import Cell, Grid, Line

ANSWERED = Cell(
    statistic="average", unit="percent", ours=80.43, sd=0.21, low=79.9, high=81.0, seeds=3, published=80.7, printed="80.7",
    difference=-0.27, marks=("=", "◇"), family="ta", select="last", keys=("0123456789abcdef",), comparable=True,
)
PRINTED = Cell(
    statistic="average", unit="percent", published=59.6, printed="59.6", corrected=57.1, flags=("the tasks average 57.1",),
    marks=("–", "⚑"), select="last",
)
BETTER = Cell(statistic="average", unit="percent", ours=85.0, low=84.0, high=86.0, seeds=1, keys=("f" * 16,), comparable=True)
LEFT_OUT = Cell(statistic="gain", unit="percent", omitted="not printed")


def grid(cells: Sequence[Sequence[Cell]], rows: Sequence[str], columns: Sequence[str], **fields: object) -> Grid:
    """Return a grid of these cells; `row_groups` and `column_groups` are headings."""
    row_groups = fields.pop("row_groups", [""] * len(rows))
    column_groups = fields.pop("column_groups", [""] * len(columns))
    given: Mapping[str, object] = {
        "experiment": "doge/table_1", "title": "A table", "question": "Which is better?", "scale": "published", "notes": (),
        **fields,
    }
    return Grid(
        rows=tuple(Line(name=name, group=group) for name, group in zip(rows, row_groups, strict=True)),  # type: ignore[call-overload]
        columns=tuple(Line(name=name, group=group) for name, group in zip(columns, column_groups, strict=True)),  # type: ignore
        cells={(row, column): cells[i][j] for i, row in enumerate(rows) for j, column in enumerate(columns)},
        **given,  # type: ignore[arg-type]
    )


def small() -> Grid:
    """Return two rows and two columns with every kind of cell."""
    return grid(
        [[ANSWERED, PRINTED], [BETTER, LEFT_OUT]], ["Task Arithmetic", "doGe TA"], ["B/32", "gain"],
        row_groups=["Reference", "Data-free"], column_groups=["Vision", "Vision"], notes=("A note of the table.",),
    )
