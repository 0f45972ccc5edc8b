"""A grid on a terminal: ours and the paper's side by side, wide tables in blocks of columns below each other."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from fusionbench_lite.tables.cells.blocks import blocks
from fusionbench_lite.tables.cells.grid import Grid
from fusionbench_lite.tables.cells.shown import View, runs, view
from fusionbench_lite.tables.cells.texts import Shown
from fusionbench_lite.tables.cells.widths import INSIDE, OURS, PAPER, Widths, column_widths, name_width, wrapped
from fusionbench_lite.tables.ranking import BEST, SECOND

WIDTH = 132
"""Columns of text where there is no terminal."""
_STYLES = {BEST: "bold green", SECOND: "underline", 0: ""}
_BETWEEN = 3


def print_grid(grid: Grid, console: Console | None = None) -> None:
    """Print the grid with its legend and notes, no line longer than the terminal, or than WIDTH where there is none."""
    console = console or Console()
    coloured = console.is_terminal and console.color_system is not None
    width = console.width if console.is_terminal else WIDTH
    for line in _lines(view(grid), width, "Bold is best, underlined second" if coloured else ""):
        console.print(line, no_wrap=True, overflow="ignore", crop=False)


def to_text(grid: Grid, width: int = WIDTH) -> str:
    """The grid as plain text without colours or escapes."""
    return "".join(f"{line.plain}\n" for line in _lines(view(grid), width, ""))


def _lines(shown: View, width: int, best: str) -> list[Text]:
    columns = shown.grid.columns
    widths = [column_widths(shown, place) for place in range(len(columns))]
    names = name_width(shown, width)
    lines = [Text(line, style="bold") for line in wrapped(shown.heading, width)]
    lines += [Text(line, style="italic") for line in wrapped(shown.grid.question, width) if line]
    parts = [_BETWEEN + of.whole for of in widths]
    for block in blocks([places for _, places in runs(columns)], parts, width - names):
        lines += [Text(), *_block(shown, block, widths, names)]
    lines.append(Text())
    lines += [Text(line, style="dim") for remark in shown.remarks(best) for line in wrapped(remark, width)]
    for line in lines:
        line.rstrip()
    return lines


def _block(shown: View, block: Sequence[int], widths: Sequence[Widths], names: int) -> list[Text]:
    lines = _head(shown, block, widths, names)
    lines.append(Text("─" * (names + sum(widths[place].whole + _BETWEEN for place in block))))
    grouped = any(row.group for row in shown.grid.rows)
    for number, (group, places) in enumerate(runs(shown.grid.rows)):
        if group:
            lines.append(Text(group, style="bold"))
        elif number:
            lines.append(Text(""))
        for row in places:
            lines += _row(shown, row, block, widths, names, indent=2 if group and grouped else 0)
    return lines


def _row(shown: View, row: int, block: Sequence[int], widths: Sequence[Widths], names: int, *, indent: int) -> list[Text]:
    name = wrapped(shown.grid.rows[row].name, names - indent)
    cells = [shown.cells[row][place] for place in block]
    height = max(len(name), 2 if any(cell.detailed for cell in cells) else 1)
    lines = []
    for number in range(height):
        line = Text(" " * indent)
        line.append(_padded(Text(name[number] if number < len(name) else ""), names - indent))
        for place, cell in zip(block, cells, strict=True):
            line.append(" " * _BETWEEN)
            part = _first(cell, widths[place]) if number == 0 else _second(cell, widths[place]) if number == 1 else Text()
            line.append(_padded(part, widths[place].whole))
        lines.append(line)
    return lines


def _first(cell: Shown, widths: Widths) -> Text:
    """The numbers, right aligned at each other, and what follows them."""
    line = Text(" " * (widths.number - cell_len(cell.ours)))
    line.append(cell.ours, style=_STYLES[cell.rank])
    line.append(f" {cell.tail}" if cell.tail else "")
    if widths.paper:
        line = _padded(line, widths.ours + INSIDE)
        line.append(cell.published.rjust(widths.published))
        line.append(f" {cell.beside}" if cell.beside else "")
    return line


def _second(cell: Shown, widths: Widths) -> Text:
    """The interval, and the difference with its verdict."""
    line = Text(cell.interval)
    return _padded(line, widths.ours + INSIDE).append(cell.against) if widths.paper else line


def _head(shown: View, block: Sequence[int], widths: Sequence[Widths], names: int) -> list[Text]:
    """The groups over their columns, the names in as many lines as they need, and ours and paper where there are both."""
    lines = []
    columns = shown.grid.columns
    titles = {place: wrapped(columns[place].name, widths[place].whole) for place in block}
    if any(columns[place].group for place in block):
        lines += _group_lines(shown, block, widths, names)
    height = max(len(title) for title in titles.values())
    for number in range(height):
        line = Text(" " * names)
        for place in block:
            padded = [""] * (height - len(titles[place])) + titles[place]
            line.append(" " * _BETWEEN).append(_padded(Text(padded[number], style="bold"), widths[place].whole))
        lines.append(line)
    if any(widths[place].paper for place in block):
        line = Text(" " * names)
        for place in block:
            pair = Text(OURS.ljust(widths[place].ours + INSIDE) + PAPER if widths[place].paper else OURS, style="dim")
            line.append(" " * _BETWEEN).append(_padded(pair, widths[place].whole))
        lines.append(line)
    return lines


def _group_lines(shown: View, block: Sequence[int], widths: Sequence[Widths], names: int) -> list[Text]:
    parts = []
    for group, of in runs([shown.grid.columns[place] for place in block]):
        width = sum(widths[block[number]].whole + _BETWEEN for number in of) - _BETWEEN
        parts.append((wrapped(group, width) if group else [], width))
    lines = []
    for number in range(max(len(words) for words, _ in parts)):
        line = Text(" " * names)
        for words, width in parts:
            line.append(" " * _BETWEEN).append(_padded(Text(words[number] if number < len(words) else "", style="bold"), width))
        lines.append(line)
    under = Text(" " * names)
    for words, width in parts:
        under.append(" " * _BETWEEN).append(("─" if words else " ") * width)
    return [*lines, under]


def _padded(text: Text, width: int) -> Text:
    text.append(" " * max(width - text.cell_len, 0))
    return text
