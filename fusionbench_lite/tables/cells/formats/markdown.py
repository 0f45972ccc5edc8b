"""A grid as a table of GitHub's Markdown: one column per column, ours above the published number."""

from __future__ import annotations

from fusionbench_lite.tables.cells.grid import Grid
from fusionbench_lite.tables.cells.shown import one_line, runs, view
from fusionbench_lite.tables.cells.texts import Shown
from fusionbench_lite.tables.escaping import markdown
from fusionbench_lite.tables.ranking import BEST, SECOND

_MARKS = {BEST: "**", SECOND: "*", 0: ""}


def to_markdown(grid: Grid) -> str:
    """The table with headings of its groups, then the legend and the notes as a list."""
    shown = view(grid)
    lines = [f"**{markdown(shown.heading)}**", "", *([markdown(grid.question), ""] if one_line(grid.question) else [])]
    heads = ["<br>".join(map(markdown, filter(None, (line.group, line.name)))) for line in grid.columns]
    lines += [_line(["", *heads]), "|:---|" + ":---|" * len(heads)]
    for group, places in runs(grid.rows):
        if group:
            lines.append(_line([f"**{markdown(group)}**", *[""] * len(heads)]))
        for place in places:
            lines.append(_line([markdown(grid.rows[place].name), *map(_cell, shown.cells[place])]))
    notes = [f"- {markdown(note)}" for note in shown.remarks("Bold is best, italic second")]
    return "\n".join([*lines, "", *notes, ""])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Shown) -> str:
    sign = _MARKS[cell.rank]
    ours = [f"{sign}{markdown(cell.ours)}{sign}" if cell.ours else "", cell.tail, cell.interval]
    paper = [cell.published, cell.beside, cell.against]
    lines = (" ".join(filter(None, part)) for part in (ours, paper))
    return "<br>".join(filter(None, lines)).replace("[", "\\[").replace("]", "\\]")
