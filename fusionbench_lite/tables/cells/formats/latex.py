r"""A grid as LaTeX for documents that load booktabs and siunitx: as many table environments as pages take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fusionbench_lite.tables.cells.blocks import blocks
from fusionbench_lite.tables.cells.grid import MINI, Grid
from fusionbench_lite.tables.cells.shown import View, one_line, runs, view
from fusionbench_lite.tables.cells.texts import Shown
from fusionbench_lite.tables.cells.widths import OURS, PAPER, column_widths, name_width, wrapped
from fusionbench_lite.tables.escaping import latex as escape
from fusionbench_lite.tables.ranking import BEST, SECOND

ROOM, LINES = 94, 46
"""Characters of a line and lines of a page of the class `article` in these sizes."""
_BETWEEN, _SECOND = 4, 0.72
"""Characters between columns, and the letters of \\tiny in those of \\scriptsize."""
_STYLES = {BEST: r"\textbf", SECOND: r"\underline", 0: ""}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one table environment holds: places of rows and columns, and the columns of its tabular that each takes."""

    rows: list[int]
    columns: list[int]
    spans: list[int]

    @property
    def width(self) -> int:
        """The columns of the tabular beside the names."""
        return sum(self.spans)


def to_latex(grid: Grid) -> str:
    r"""Return one or more table environments; legend and notes stand below the last, or after it where they are long."""
    shown = view(grid)
    parts = _parts(shown)
    notes = [escape(note) for note in shown.remarks("Bold is best, underlined second")]
    remarks = [rf"{note}\par" for note in notes]
    last = 2 * len(parts[-1].rows) + sum(1 + len(note) // 110 for note in notes)
    below, after = (remarks, []) if last <= LINES else ([], remarks)
    lines = [r"% Needs \usepackage{booktabs} and \usepackage{siunitx}."]
    for number, part in enumerate(parts):
        lines += _environment(shown, part, number, len(parts), below if number == len(parts) - 1 else [])
    if after:
        about = rf"\textbf{{Notes to Table~\ref{{tab:{_label(grid)}}}.}}\par"
        lines += [r"\begingroup\scriptsize\raggedright\setlength{\parindent}{0pt}", about, *after, r"\endgroup"]
    return "\n".join([*lines, ""])


def _parts(shown: View) -> list[Part]:
    columns = shown.grid.columns
    sizes = [column_widths(shown, place, _SECOND).whole + _BETWEEN for place in range(len(columns))]
    across = blocks([places for _, places in runs(columns)], sizes, ROOM - name_width(shown, ROOM))
    heights = [max(2, len(wrapped(row.name, name_width(shown, ROOM)))) for row in shown.grid.rows]
    down = blocks([places for _, places in runs(shown.grid.rows)], heights, LINES)
    spans = [4 if paired else 2 for paired in shown.paired]
    return [Part(rows=rows, columns=of, spans=[spans[place] for place in of]) for of in across or [[]] for rows in down or [[]]]


def _environment(shown: View, part: Part, number: int, count: int, remarks: Sequence[str]) -> list[str]:
    continued = f" ({number + 1} of {count})" if count > 1 else ""
    question = one_line(shown.grid.question)
    return [
        r"\begin{table}[tbp]",
        r"\centering",
        rf"\caption{{{escape(shown.heading + continued)}}}",
        rf"\label{{tab:{_label(shown.grid)}{f'-{number + 1}' if number else ''}}}",
        *([rf"{{\footnotesize {escape(question)}\par}}"] if question and not number else []),
        r"\smallskip",
        r"\scriptsize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{{_spec(shown, part)}}}",
        r"\toprule",
        *_head(shown, part),
        *_body(shown, part),
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\smallskip", r"\begin{minipage}{\linewidth}\scriptsize\raggedright"] if remarks else []),
        *remarks,
        *([r"\end{minipage}"] if remarks else []),
        r"\end{table}",
    ]


def _label(grid: Grid) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{grid.experiment}{'-mini' if grid.scale == MINI else ''}").strip("-")


def _spec(shown: View, part: Part) -> str:
    columns = []
    for place, span in zip(part.columns, part.spans, strict=True):
        paper = rf"{_aligned([shown.cells[row][place].published for row in part.rows])}@{{\,}}l" if span == 4 else ""
        columns.append(rf"r@{{\,}}l{paper}")
    return "".join(["l", *columns])


def _aligned(numbers: Sequence[str]) -> str:
    """Return the column of siunitx that aligns these numbers at their decimal points."""
    parts = [number.replace(",", "").lstrip("+").partition(".") for number in numbers if number]
    before = max((len(whole.lstrip("-")) for whole, _, _ in parts), default=1)
    sign = "-" if any(whole.startswith("-") for whole, _, _ in parts) else ""
    after = max((len(decimals) for _, _, decimals in parts), default=0)
    thousands = ",group-digits=integer,group-minimum-digits=4,group-separator={,}" if before > 3 else ""
    return f"S[table-format={sign}{before}.{after}{thousands}]"


def _head(shown: View, part: Part) -> list[str]:
    columns = [shown.grid.columns[place] for place in part.columns]
    lines = []
    if any(column.group for column in columns):
        groups = [(escape(group), sum(part.spans[of.start : of.stop])) for group, of in runs(columns)]
        lines += [_over(groups), _rules(groups)]
    sizes = [column_widths(shown, place, _SECOND).whole for place in part.columns]
    names = [_stacked(wrapped(column.name, size)) for column, size in zip(columns, sizes, strict=True)]
    heads = list(zip(names, part.spans, strict=True))
    lines.append(_over(heads))
    if 4 in part.spans:
        sides = [side for span in part.spans for side in ((OURS, 2), (PAPER, 2))[: span // 2]]
        lines += [_rules(heads), _over(sides, "l")]
    return lines


def _stacked(lines: Sequence[str]) -> str:
    stacked = r" \\ ".join(map(escape, lines))
    return stacked if len(lines) == 1 else rf"\shortstack{{{stacked}}}"


def _over(parts: Sequence[tuple[str, int]], place: str = "c") -> str:
    return "".join(rf" & \multicolumn{{{span}}}{{{place}}}{{{text}}}" for text, span in parts) + r" \\"


def _rules(parts: Sequence[tuple[str, int]]) -> str:
    """Return the rules below headings, none below an empty one."""
    place, rules = 2, []
    for text, span in parts:
        rules += [rf"\cmidrule(lr){{{place}-{place + span - 1}}}"] if text else []
        place += span
    return " ".join(rules)


def _body(shown: View, part: Part) -> list[str]:
    lines = []
    for group, places in runs([shown.grid.rows[row] for row in part.rows]):
        lines.append(r"\midrule")
        if group:
            lines.append(rf"\multicolumn{{{part.width + 1}}}{{@{{}}l}}{{\textit{{{escape(group)}}}}} \\")
        for place in places:
            row = part.rows[place]
            cells = [shown.cells[row][column] for column in part.columns]
            lines += _row(wrapped(shown.grid.rows[row].name, name_width(shown, ROOM)), cells, part.spans)
    return lines


def _row(names: Sequence[str], cells: Sequence[Shown], spans: Sequence[int]) -> list[str]:
    """Return the numbers, then intervals and differences; a long name runs on beside them, indented."""
    name, *more = map(escape, names)
    more = [rf"\quad {line}" for line in more]
    lines = [" & ".join([name, *map(_first, cells, spans)])]
    if any(cell.detailed for cell in cells):
        lines.append((more.pop(0) if more else "") + "".join(map(_second, cells, spans)))
    return [rf"{line} \\" for line in [*lines, *more]]


def _first(cell: Shown, span: int) -> str:
    ours = f"{_STYLES[cell.rank]}{{{_signed(cell.ours)}}}" if cell.rank else _signed(cell.ours)
    published = cell.published.replace(",", "").lstrip("+")
    paper = f" & {published} & {escape(cell.beside)}" if span == 4 else ""
    return f"{ours} & {escape(cell.tail)}{paper}"


def _second(cell: Shown, span: int) -> str:
    texts = (cell.interval, cell.against)[: span // 2]
    return "".join(rf" & \multicolumn{{2}}{{l}}{{\tiny {_signed(text)}}}" if text else " & & " for text in texts)


def _signed(text: str) -> str:
    """Text with minus signs in place of hyphens."""
    return escape(text.replace("-", "−"))
