"""A table as LaTeX: booktabs, best bold, second underlined per column, reference rows set apart by a rule."""

from __future__ import annotations

import re

from fusionbench_lite.tables.escaping import latex as escape
from fusionbench_lite.tables.frame import Table
from fusionbench_lite.tables.ranking import BEST, SECOND
from fusionbench_lite.tables.render import UNRANKED_ROWS, cells, heading, ranks, reference


def to_latex(table: Table) -> str:
    """A complete table environment; the document needs \\usepackage{booktabs}. Remarks stand below the rules."""
    shown, ranked = cells(table), ranks(table)
    marks = {BEST: "textbf:--rwrap;", SECOND: "underline:--rwrap;", 0: ""}
    css = ranked.map(marks.__getitem__)
    # Labels become positions, since two may differ only in a way pandas cannot style; their names return as text.
    names = [escape(name) for name in shown.index]
    css.index, shown.index = [range(len(shown))] * 2
    styler = shown.style.format(escape).format_index(escape, axis="columns")
    styler = styler.format_index(names.__getitem__, axis="index").apply(lambda _: css, axis=None)
    tabular: str = styler.to_latex(hrules=True, column_format="l" + "r" * len(shown.columns))
    lines = _with_rule(tabular.strip().splitlines(), sum(reference(table)), len(shown))
    label = re.sub(r"[^A-Za-z0-9]+", "-", table.name or "runs").strip("-")
    remarks = [rf"\par {escape(note)}" for note in table.notes]
    remarks[0] += " Best bold, second underlined; rows above the middle rule are references and not ranked, nor are rows "
    remarks[0] += f"{UNRANKED_ROWS}."
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{escape(heading(table))}}}",
            rf"\label{{tab:{label}}}",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            *lines,
            r"\par\smallskip",
            r"\begin{minipage}{\linewidth}\scriptsize\raggedright",
            *remarks,
            r"\end{minipage}",
            r"\end{table}",
            "",
        ]
    )


def _with_rule(lines: list[str], references: int, rows: int) -> list[str]:
    """Add a rule below the reference rows, which come first; Styler draws none inside a body."""
    if 0 < references < rows:
        body = next(number for number, line in enumerate(lines) if line.startswith(r"\midrule")) + 1
        lines.insert(body + references, r"\midrule")
    return lines
