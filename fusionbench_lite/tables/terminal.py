"""A table on a terminal, through rich: best bold, second underlined, reference rows dimmed."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Grid
from rich.text import Text

from fusionbench_lite.evaluation.measures import PERCENT
from fusionbench_lite.tables.compare import Comparison
from fusionbench_lite.tables.frame import Table
from fusionbench_lite.tables.ranking import BEST, SECOND
from fusionbench_lite.tables.render import ABSENT, cells, heading, ranks, reference

_STYLES = {BEST: "bold green", SECOND: "underline", 0: ""}


def print_table(table: Table, console: Console | None = None) -> None:
    """Print the table and its remarks.

    A terminal too narrow for one grid gets two: what each method scores and costs, then its tasks. Elsewhere (a file, a
    pipe) lines are as long as they need to be, so that logs hold the whole table.
    """
    console = console or Console()
    shown, ranked = cells(table), ranks(table)
    whole = _grid(table, shown, ranked, shown.columns)
    width = _width(whole, console)
    console.print()
    console.print(Text(heading(table), style="bold"), soft_wrap=True)
    if table.question:
        console.print(Text(table.question, style="italic"), soft_wrap=not console.is_terminal)
    if width <= console.width or not console.is_terminal:
        _print_wide(whole, width, console)
    else:
        summary = [name for name in shown.columns if name not in table.tasks]
        for columns in (summary, list(table.tasks)):
            console.print(_grid(table, shown, ranked, columns))
    for note in table.notes:
        console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)


def to_text(table: Table) -> str:
    """The table as plain text without colours or escapes, lines as long as they need to be."""
    buffer = io.StringIO()
    print_table(table, Console(file=buffer, force_terminal=False, color_system=None, width=100))
    return buffer.getvalue()


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print a paired comparison: per task the difference and the discordant examples, then the sentence to quote."""
    console, measure = console or Console(), comparison.measure
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("Task")  # texts, because a name in brackets is no style
    for header in ("Difference", f"only {comparison.a}", f"only {comparison.b}"):
        grid.add_column(Text(header), justify="right")
    for task, (difference, only_a, only_b) in comparison.per_task.items():
        counts = (ABSENT if only is None else f"{only:,}" for only in (only_a, only_b))
        grid.add_row(Text(task), f"{measure.scale * difference:+.{measure.decimals}f}", *counts)
    _print_wide(grid, _width(grid, console), console)
    for line in describe(comparison):
        console.print(Text(line), soft_wrap=not console.is_terminal)


def describe(comparison: Comparison) -> list[str]:
    """The comparison in sentences."""
    paired = comparison.paired
    points, low, high = comparison.points
    of, digits = ("points of " if comparison.measure.unit == PERCENT else ""), comparison.measure.decimals + 1
    over = f" over {comparison.seeds} seeds" if comparison.seeds > 1 else ""
    marks = ["†" if flag else "" for flag in comparison.uses_test_labels]
    a, b = (name + mark for name, mark in zip((comparison.a, comparison.b), marks, strict=True))
    lines = [
        f"{a} minus {b}: {points:+.{digits}f} {of}average {comparison.measure.label}, 95% interval [{low:+.{digits}f}, "
        f"{high:+.{digits}f}] (paired bootstrap within tasks, {paired.examples:,} examples{over})."
    ]
    if not comparison.measure.higher:
        lines.append("Lower is better: a negative difference speaks for the first.")
    others = [task for task in comparison.per_task if task not in comparison.whole_set]
    about = f" of {', '.join(others)}" if comparison.whole_set else ""
    if not others:
        lines.append("McNemar's test is left out: the metric judges the whole test set, no example is right or wrong.")
    elif paired.mid_p is None:
        lines.append("McNemar's test is left out: several seeds judged the same examples, which are not independent.")
    else:
        lines.append(
            f"McNemar over all examples{about}: {paired.only_a:,} right only with {a}, {paired.only_b:,} only with {b}; "
            f"p = {paired.mid_p:.2g} (mid-p), {paired.exact_p:.2g} (exact)."
        )
    if any(comparison.uses_test_labels):
        lines.append("† reads test labels, to choose the step (best_test) or as a supervised oracle: optimistic.")
    return lines


def _grid(table: Table, shown: pd.DataFrame, ranked: pd.DataFrame, columns: Sequence[str]) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("Method", min_width=12)
    for name in columns:
        grid.add_column(Text(str(name)), justify="right", no_wrap=name not in table.tasks, overflow="fold")
    apart = reference(table)
    for position, name in enumerate(shown.index):
        texts = []
        for column in columns:
            style = "" if apart[position] else _STYLES[int(ranked[column].iloc[position])]
            texts.append(Text(str(shown[column].iloc[position]), style=style, no_wrap=True))
        last_reference = apart[position] and position + 1 < len(apart) and not apart[position + 1]
        grid.add_row(Text(str(name)), *texts, style="dim" if apart[position] else None, end_section=last_reference)
    return grid


def _width(grid: Grid, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=10_000, max_width=10_000), grid).maximum


def _print_wide(grid: Grid, width: int, console: Console) -> None:
    if width > console.width and not console.is_terminal:
        wide = Console(file=console.file, width=width, force_terminal=False, color_system=None)
        wide.print(grid)
    else:
        console.print(grid)
