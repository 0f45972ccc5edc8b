"""A grid as LaTeX: booktabs, groups of rows and columns under their headings; needs no other package."""

from __future__ import annotations

import re

from fusionbench_lite.tables.cells import texts
from fusionbench_lite.tables.cells.grid import Grid, Line
from fusionbench_lite.tables.latex import escape
from fusionbench_lite.tables.render import BEST, SECOND

_WIDEST = 9
"""Columns of one tabular; more go to tabulars of their own below."""
_MARKS = {
    "≠": r"$\neq$", "⚑": r"$^{\mathrm{F}}$", "◇": r"$\diamond$", "†": r"$^\dagger$", "…": r"\ldots{}", "–": "--", "Δ": r"$\Delta$",
    "≥": r"$\geq$", "≤": r"$\leq$", "×": r"$\times$", "−": "$-$", "σ": r"$\sigma$", "λ": r"$\lambda$", "τ": r"$\tau$",
    "θ": r"$\theta$", "α": r"$\alpha$", "β": r"$\beta$", "η": r"$\eta$",
}


def to_latex(grid: Grid) -> str:
    r"""A table environment of one tabular, or of several where the columns are many. The document loads booktabs."""
    label = re.sub(r"[^A-Za-z0-9]+", "-", grid.experiment).strip("-")
    out = [
        r"\begin{table}[t]", r"\centering", rf"\caption{{{_text(texts.heading(grid))}}}", rf"\label{{tab:{label}}}", r"\tiny",
        r"\setlength{\tabcolsep}{3pt}",
    ]
    for start in range(0, len(grid.columns), _WIDEST):
        if start:
            out.append(r"\par\medskip")
        out += _tabular(grid, grid.columns[start : start + _WIDEST])
    out += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\tiny\raggedright"]
    out += [rf"{_text(remark)}\par" for remark in texts.remarks(grid)]
    return "\n".join([*out, r"\end{minipage}", r"\end{table}", ""])


def _tabular(grid: Grid, columns: tuple[Line, ...]) -> list[str]:
    out = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", *_groups(columns)]
    out.append(" & ".join(["", *(_text(column.name) for column in columns)]) + r" \\")
    ranked = {column.name: texts.ranks(grid, column.name) for column in columns}
    decimals = {column.name: texts.digits(grid, column.name) for column in columns}
    place = 0
    for group, rows in texts.groups(grid.rows):
        out.append(r"\midrule")
        if group:
            out.append(rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\textit{{{_text(group)}}}}} \\")
        for row in rows:
            cells = [
                _cell(texts.lines(grid.cells[row.name, column.name], decimals[column.name]), ranked[column.name][place])
                for column in columns
            ]
            out.append(" & ".join([_text(row.name), *cells]) + r" \\")
            place += 1
    return [*out, r"\bottomrule", r"\end{tabular}"]


def _groups(columns: tuple[Line, ...]) -> list[str]:
    """Return the line of column headings and the rules below it, nothing where there are none."""
    found = texts.groups(columns)
    if not any(name for name, _ in found):
        return []
    heads, rules, at = [""], [], 2
    for name, group in found:
        heads.append(rf"\multicolumn{{{len(group)}}}{{c}}{{{_text(name)}}}")
        if name:
            rules.append(rf"\cmidrule(lr){{{at}-{at + len(group) - 1}}}")
        at += len(group)
    return [" & ".join(heads) + r" \\", " ".join(rules)]


def _cell(lines: list[str], rank: int) -> str:
    first = _text(lines[0])
    first = {BEST: rf"\textbf{{{first}}}", SECOND: rf"\underline{{{first}}}"}.get(rank, first)
    return first if len(lines) == 1 else rf"\shortstack[r]{{{first}\\{_text(lines[1])}}}"


def _text(text: str) -> str:
    """Text that LaTeX prints as it stands, whatever signs it has; those beyond its fonts become question marks."""
    out = []
    for character in text:
        known = _MARKS.get(character) or escape(character)
        out.append(known if known.isascii() or character in "äöüÄÖÜßéèàçñ" else "?")
    return "".join(out)
