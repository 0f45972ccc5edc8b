"""A grid as text, CSV, Markdown and HTML."""

from __future__ import annotations

import csv
import html
import io

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fusionbench_lite.tables.cells import texts
from fusionbench_lite.tables.cells.grid import Grid, Line
from fusionbench_lite.tables.render import BEST, SECOND
from fusionbench_lite.tables.render import escaped as markdown

COLUMNS = (
    "row", "column", "statistic", "unit", "ours", "sd", "low", "high", "seeds", "published", "published_corrected", "difference",
    "marks", "family", "select", "record_keys",
)
_STYLES = {BEST: "bold green", SECOND: "underline", 0: ""}
WIDTH = 132
"""Of plain text."""


def to_text(grid: Grid, width: int = WIDTH, *, colours: bool = False) -> str:
    """The table for a terminal, columns side by side as far as the width goes, whole groups together where they fit."""
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=colours, color_system="standard" if colours else None, width=max(width, 60))
    console.print(Text(texts.heading(grid), style="bold"))
    if grid.question:
        console.print(Text(grid.question, style="italic"))
    for block in _blocks(grid, console):
        console.print(_table(grid, block))
    for remark in texts.remarks(grid):
        console.print(Text(remark, style="dim"))
    return buffer.getvalue()


def _blocks(grid: Grid, console: Console) -> list[list[Line]]:
    """Cut the columns into tables that fit the console."""
    blocks: list[list[Line]] = []
    for _, group in texts.groups(grid.columns):
        for column in group:
            wider = [*blocks[-1], column] if blocks else [column]
            if blocks and _width(_table(grid, wider), console) <= console.width:
                blocks[-1].append(column)
            else:
                blocks.append([column])
    return blocks


def _width(table: Table, console: Console) -> int:
    """Return how wide a table is with nothing cut."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _table(grid: Grid, columns: list[Line]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        under = column.group and not column.name.startswith(column.group)
        table.add_column(Text(f"{column.group}\n{column.name}" if under else column.name), justify="right", no_wrap=True)
    ranked = {column.name: texts.ranks(grid, column.name) for column in columns}
    decimals = {column.name: texts.digits(grid, column.name) for column in columns}
    place = 0
    for number, (_, rows) in enumerate(texts.groups(grid.rows)):
        if number:
            table.add_section()
        for row in rows:
            cells = []
            for column in columns:
                first, *rest = texts.lines(grid.cells[row.name, column.name], decimals[column.name])
                text = Text(first, style=_STYLES[ranked[column.name][place]])
                cells.append(text.append("\n" + rest[0], style="dim") if rest else text)
            table.add_row(Text(row.name), *cells)
            place += 1
    return table


def to_csv(grid: Grid) -> str:
    """One line per cell, row by row, numbers at full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in grid.rows:
        for column in grid.columns:
            cell = grid.cells[row.name, column.name]
            values = (
                row.name, column.name, cell.statistic, cell.unit, cell.ours, cell.sd, cell.low, cell.high, cell.seeds,
                cell.published, cell.corrected, cell.difference, "".join(cell.marks), cell.family, cell.select, " ".join(cell.keys),
            )
            writer.writerow(["" if value is None else repr(value) if isinstance(value, float) else value for value in values])
    return buffer.getvalue()


def to_markdown(grid: Grid) -> str:
    """A GitHub table; best bold, second italic."""
    marks = {BEST: "**", SECOND: "*", 0: ""}
    heads = [f"{c.group}: {c.name}" if c.group and not c.name.startswith(c.group) else c.name for c in grid.columns]
    out = [f"**{markdown(texts.heading(grid))}**", "", "| " + " | ".join(["", *map(markdown, heads)]) + " |"]
    out.append("|:---|" + "---:|" * len(grid.columns))
    ranked = {column.name: texts.ranks(grid, column.name) for column in grid.columns}
    decimals = {column.name: texts.digits(grid, column.name) for column in grid.columns}
    place = 0
    for group, rows in texts.groups(grid.rows):
        if group:
            out.append(f"| *{markdown(group)}* |" + " |" * len(grid.columns))
        for row in rows:
            cells = []
            for column in grid.columns:
                first, *rest = map(markdown, texts.lines(grid.cells[row.name, column.name], decimals[column.name]))
                mark = marks[ranked[column.name][place]]
                cells.append("<br>".join([f"{mark}{first}{mark}", *rest]))
            out.append(f"| {markdown(row.name)} | " + " | ".join(cells) + " |")
            place += 1
    notes = [line for remark in texts.remarks(grid) for line in ("", markdown(remark))]
    return "\n".join([*out, *notes, ""])


def to_html(grid: Grid) -> str:
    """A fragment that needs nothing else; best bold, second underlined."""
    style = {BEST: ' style="font-weight:bold"', SECOND: ' style="text-decoration:underline"', 0: ""}
    out = ['<table style="border-collapse:collapse">', f"<caption>{html.escape(texts.heading(grid))}</caption>", "<thead>"]
    if any(column.group for column in grid.columns):
        heads = "".join(f'<th colspan="{len(group)}">{html.escape(name)}</th>' for name, group in texts.groups(grid.columns))
        out.append(f"<tr><th></th>{heads}</tr>")
    names = "".join(f'<th style="padding:0.1em 0.6em">{html.escape(column.name)}</th>' for column in grid.columns)
    out += [f"<tr><th></th>{names}</tr>", "</thead>", "<tbody>"]
    ranked = {column.name: texts.ranks(grid, column.name) for column in grid.columns}
    decimals = {column.name: texts.digits(grid, column.name) for column in grid.columns}
    place = 0
    for group, rows in texts.groups(grid.rows):
        if group:
            out.append(f'<tr><th colspan="{len(grid.columns) + 1}" style="text-align:left">{html.escape(group)}</th></tr>')
        for row in rows:
            cells = ""
            for column in grid.columns:
                first, *rest = map(html.escape, texts.lines(grid.cells[row.name, column.name], decimals[column.name]))
                below = f"<br><small>{rest[0]}</small>" if rest else ""
                cells += (
                    f'<td style="text-align:right;padding:0.1em 0.6em"><span{style[ranked[column.name][place]]}>{first}</span>'
                    f"{below}</td>"
                )
            out.append(f'<tr><td>{html.escape(row.name)}</td>{cells}</tr>')
            place += 1
    out += ["</tbody>", "</table>", *(f"<p><small>{html.escape(remark)}</small></p>" for remark in texts.remarks(grid)), ""]
    return "\n".join(out)
