"""A table as text that people read: formatted cells, ranks, and the CSV, Markdown and HTML formats."""

from __future__ import annotations

import html
import math

import pandas as pd

from fusionbench_lite.evaluation.columns import (
    AVERAGE,
    AVERAGE_HEADER,
    INTERVAL_HEADER,
    METHOD_HEADER,
    METRICS,
    SECONDS_HEADER,
    VERSUS,
)
from fusionbench_lite.evaluation.measures import ACCURACY
from fusionbench_lite.evaluation.selection import USES_TEST_LABELS
from fusionbench_lite.registry import REFERENCE, UNRANKED
from fusionbench_lite.tables.escaping import markdown
from fusionbench_lite.tables.frame import Table
from fusionbench_lite.tables.notes import DAGGER
from fusionbench_lite.tables.ranking import BEST, SECOND, places

ABSENT = "—"

UNRANKED_ROWS = (
    "with adapters or routes, of one model per task, of some of the experts, or that read test labels beyond the selection rule"
)


def heading(table: Table) -> str:
    """The title, with the selection rule where it is not the last step, and the mark of a trial."""
    title = table.title or table.name or "Results"
    chosen = "" if table.select == "last" else f" (selection: {table.select})"
    return ("TRIAL: " if table.trial else "") + title + chosen


def reference(table: Table) -> list[bool]:
    """Per row, whether it is a reference (no merging method): set apart and never ranked."""
    return [bool(name == REFERENCE) for name in table.frame["family"]]


def cells(table: Table, *, std: bool = True) -> pd.DataFrame:
    """The table as strings, percent with one decimal: tasks, average, interval, difference to the baseline, seconds.

    Rows whose step was chosen on test labels carry a dagger. std: show standard deviations where there are several seeds.
    """
    shown = pd.DataFrame(index=[f"{name} {DAGGER}" if flag else name for name, flag in _flags(table)])
    for name in table.columns:
        header = AVERAGE_HEADER if name == AVERAGE else name
        spread = table.frame[f"{name}_std"] if std else [math.nan] * len(table.frame)
        digits = table.decimals(name)
        shown[header] = [_number(value, deviation, digits) for value, deviation in zip(table.frame[name], spread, strict=True)]
    ends = zip(table.frame[f"{AVERAGE}_low"], table.frame[f"{AVERAGE}_high"], strict=True)
    digits = table.decimals(AVERAGE)
    shown[INTERVAL_HEADER] = [ABSENT if math.isnan(low) else f"{low:.{digits}f}–{high:.{digits}f}" for low, high in ends]
    if table.baseline is not None:
        columns = (table.frame[column] for column in ("difference", "difference_low", "difference_high"))
        shown[f"{VERSUS}{table.baseline}"] = [
            ABSENT if math.isnan(value) else f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            for value, low, high in zip(*columns, strict=True)
        ]
    shown[SECONDS_HEADER] = [_seconds(value) for value in table.frame["seconds"]]
    return shown


def ranks(table: Table) -> pd.DataFrame:
    """Per column of values: BEST, SECOND or 0, in the shape of `cells` (other columns are 0).

    Numbers are compared as printed, so two that read the same share their rank; the second is the next number below, or
    above where lower is better.
    Rows of the unranked families, references among them, have no rank, nor have rows that read test labels where the
    table's selection rule does not; a column with one ranked row has no best.
    """
    shown = cells(table)
    ranked = pd.DataFrame(0, index=shown.index, columns=shown.columns)
    ruled = table.select in USES_TEST_LABELS
    rows = zip(table.frame["family"], table.frame["uses_test_labels"], strict=True)
    methods = [family not in UNRANKED and (ruled or not reads) for family, reads in rows]
    for name in table.columns:
        printed = table.frame[name].round(table.decimals(name)).where(methods)
        ranked[AVERAGE_HEADER if name == AVERAGE else name] = places(printed, higher=table.higher(name))
    return ranked


def to_csv(table: Table) -> str:
    """Plain numbers at full precision; `select` and `uses_test_labels` say how each row's step was chosen.

    Accuracies, in percent, need no more words; other tables have a last column `metrics`, task=metric, with the unit.
    """
    frame = table.frame
    if any(table.measures.get(task, ACCURACY) != ACCURACY for task in table.tasks):
        of = ((task, table.measures[task]) for task in table.tasks)
        frame = frame.assign(**{METRICS: " ".join(f"{task}={m.name}{'_' * bool(m.unit)}{m.unit}" for task, m in of)})
    text: str = frame.to_csv(lineterminator="\n")
    return text


def to_markdown(table: Table) -> str:
    """A GitHub table: best bold, second italic, reference rows first; the remarks follow."""
    shown, ranked = cells(table), ranks(table)
    lines = [f"**{markdown(heading(table))}**", ""]
    lines.append("| " + " | ".join([METHOD_HEADER, *map(markdown, shown.columns)]) + " |")
    lines.append("|:---|" + "---:|" * len(shown.columns))
    marks = {BEST: "**", SECOND: "*", 0: ""}
    for position, name in enumerate(shown.index):
        row = zip(shown.iloc[position], ranked.iloc[position], strict=True)
        lines.append("| " + " | ".join([markdown(name), *(f"{marks[r]}{text}{marks[r]}" for text, r in row)]) + " |")
    legend = f"Best **bold**, second *italic*; rows of references, {UNRANKED_ROWS} are not ranked."
    return "\n".join([*lines, "", legend, *(markdown(note) for note in table.notes), ""]).replace("\n\n\n", "\n\n")


def to_html(table: Table) -> str:
    """A self-contained fragment through pandas Styler: best bold, second underlined, reference rows grey."""
    shown, ranked = cells(table), ranks(table)
    style = {BEST: "font-weight: bold", SECOND: "text-decoration: underline", 0: ""}
    css = ranked.map(style.__getitem__)
    for position, apart in enumerate(reference(table)):
        if apart:
            css.iloc[position] = "color: #666"
    css.index, shown.index = [range(len(shown))] * 2
    styler = shown.style.format(escape="html").format_index(escape="html", axis="columns")
    styler = styler.apply(lambda _: css, axis=None).set_caption(html.escape(heading(table)))
    names = dict(enumerate(cells(table).index))
    styler = styler.format_index(lambda position: html.escape(names[position]), axis="index")
    styler = styler.set_table_styles([{"selector": "td", "props": "text-align: right; padding: 0.1em 0.6em"}])
    styler = styler.set_uuid("results").set_table_attributes('style="border-collapse: collapse"')
    notes = "".join(f"<p><small>{html.escape(note)}</small></p>\n" for note in table.notes)
    text: str = styler.to_html()
    return text + notes


def _flags(table: Table) -> list[tuple[str, bool]]:
    return [(str(name), bool(flag)) for name, flag in table.frame["uses_test_labels"].items()]


def _number(value: float, deviation: float, digits: int) -> str:
    if math.isnan(value):
        return ABSENT
    return f"{value:.{digits}f}" if math.isnan(deviation) else f"{value:.{digits}f} ± {deviation:.{digits}f}"


def _seconds(value: float) -> str:
    if math.isnan(value):
        return ABSENT
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"
