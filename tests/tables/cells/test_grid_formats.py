"""Grids in every format: what small ones look like, that hard names break none, and that no cell is lost."""

import csv
import html.parser
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from fusionbench_lite.tables.cells import output
from fusionbench_lite.tables.cells.formats.latex import to_latex
from fusionbench_lite.tables.cells.formats.markdown import to_markdown
from fusionbench_lite.tables.cells.formats.numbers import HEADER, to_csv
from fusionbench_lite.tables.cells.formats.page import to_html
from fusionbench_lite.tables.cells.formats.text import print_grid, to_text
from fusionbench_lite.tables.cells.grid import Line
from fusionbench_lite.tables.cells.shown import one_line, view
from fusionbench_lite.tables.escaping import latex as escape
from tests.support.grids import HARD, cell, grid, large, small

TEXT = """\
doge/table_6: Ablation
What does it add?

               ViT-B/32
               ──────────────────────────────────────────────────
               8 tasks                       14 tasks
               ours          paper           ours          paper
─────────────────────────────────────────────────────────────────
Bounds
  Individual   90.5 ◇        90.8 ⚑ (90.5)
               [90.0, 91.0]  -0.3 =
Merged
  TA           69.1 ± 0.2    69.1            65.2          65.4
               [68.6, 69.6]  +0.0 =          [64.7, 65.7]  -0.2 =
  doGe TA      79.4          80.7               –          77.9
               [78.9, 79.9]  -1.3 ≠
"""
NAMES = st.text(st.one_of(st.sampled_from("&_%$#{}~^\\|*<>[]`-\n\"' "), st.characters(codec="utf-8")), min_size=1, max_size=12)


def test_text():
    shown = to_text(small())
    body, _, remarks = shown.rpartition("\n\n")
    assert f"{body}\n" == TEXT
    assert remarks.startswith("Ours: mean ± standard deviation over 3 seeds, [95% interval")


def test_text_of_a_fresh_machine_is_the_published_side():
    lines = to_text(large(2, 2, records=False)).splitlines()
    row = next(line for line in lines if line.lstrip().startswith("method 1"))
    assert row.split() == ["method", "1", "–", "2000.2", "–", "2000.3", "⚑"]
    assert not any("[" in line for line in lines)


@pytest.mark.parametrize("width", [60, 100, 132])
def test_wide_tables_are_broken_into_blocks_that_fit(width):
    lines = to_text(large(17, 102), width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert sum(line.startswith("  method 16") for line in lines) == sum(line.startswith("───") for line in lines)


def test_best_and_second_stand_out_on_a_terminal():
    buffer = io.StringIO()
    print_grid(small(), Console(file=buffer, force_terminal=True, color_system="standard", width=100))
    assert "\x1b[1;32m79.4\x1b[0m" in buffer.getvalue()
    assert "\x1b[4m69.1\x1b[0m" in buffer.getvalue()
    assert "Bold is best, underlined second" in buffer.getvalue()


def test_csv_round_trip():
    made = small()
    lines = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert tuple(lines[0]) == HEADER
    assert [(line["row"], line["column"]) for line in lines] == [(r.name, c.name) for r in made.rows for c in made.columns]
    for line in lines:
        of = made.cells[line["row"], line["column"]]
        numbers = {"ours": of.ours, "sd": of.sd, "low": of.low, "high": of.high, "published": of.published,
                   "published_corrected": of.corrected, "difference": of.difference}  # fmt: skip
        assert {name: float(line[name]) if line[name] else None for name in numbers} == numbers
        assert (line["statistic"], line["unit"], int(line["seeds"])) == (of.statistic, of.unit, of.seeds)
        assert (set(line["marks"]), line["family"], line["select"]) == (set(of.marks), of.family, of.select)
        assert tuple(line["record_keys"].split()) == of.keys


def test_markdown():
    lines = to_markdown(small()).splitlines()
    assert lines[:7] == [
        r"**doge/table\_6: Ablation**",
        "",
        "What does it add?",
        "",
        "|  | ViT-B/32<br>8 tasks | ViT-B/32<br>14 tasks |",
        "|:---|:---|:---|",
        "| **Bounds** |  |  |",
    ]
    assert lines[7] == r"| Individual | 90.5 ◇ \[90.0, 91.0\]<br>90.8 ⚑ (90.5) -0.3 = |  |"
    assert lines[9] == r"| TA | *69.1* ± 0.2 \[68.6, 69.6\]<br>69.1 +0.0 = | 65.2 \[64.7, 65.7\]<br>65.4 -0.2 = |"
    assert lines[10] == r"| doGe TA | **79.4** \[78.9, 79.9\]<br>80.7 -1.3 ≠ | –<br>77.9 |"


def test_latex():
    lines = to_latex(small()).splitlines()
    assert lines[0] == r"% Needs \usepackage{booktabs} and \usepackage{siunitx}."
    assert lines[1:4] == [r"\begin{table}[tbp]", r"\centering", r"\caption{doge/table\_6: Ablation}"]
    start = lines.index(r"\toprule")
    assert lines[start + 1 : start + 10] == [
        r" & \multicolumn{8}{c}{ViT-B/32} \\",
        r"\cmidrule(lr){2-9}",
        r" & \multicolumn{4}{c}{8 tasks} & \multicolumn{4}{c}{14 tasks} \\",
        r"\cmidrule(lr){2-5} \cmidrule(lr){6-9}",
        r" & \multicolumn{2}{l}{ours} & \multicolumn{2}{l}{paper} & \multicolumn{2}{l}{ours} & \multicolumn{2}{l}{paper} \\",
        r"\midrule",
        r"\multicolumn{9}{@{}l}{\textit{Bounds}} \\",
        r"Individual & 90.5 & $\diamond$ & 90.8 & $|\mkern-3mu\triangleright$ (90.5) &  &  &  &  \\",
        r" & \multicolumn{2}{l}{\tiny {}[90.0, 91.0]} & \multicolumn{2}{l}{\tiny $-$0.3 =} & &  & &  \\",
    ]
    assert r"TA & \underline{69.1} & $\pm$ 0.2 & 69.1 &  & 65.2 &  & 65.4 &  \\" in lines
    assert lines.count(r"\midrule") == 2


class Rows(html.parser.HTMLParser):
    """The rows of a table: of each cell its text and the columns that it takes."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.inside = [], set(), False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(["", int(dict(attributes).get("colspan", 1))])
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1][0] += data


def test_html():
    rows = Rows(to_html(small())).rows
    assert {sum(span for _, span in row) for row in rows} == {5}
    texts = [[" ".join(text.split()) for text, _ in row] for row in rows]
    assert texts[:4] == [["", "ViT-B/32"], ["", "8 tasks", "14 tasks"], ["", "ours", "paper", "ours", "paper"], ["Bounds"]]
    assert texts[6] == ["TA", "69.1 ± 0.2[68.6, 69.6]", "69.1 +0.0 =", "65.2 [64.7, 65.7]", "65.4 -0.2 ="]
    assert '<span class="best">79.4</span>' in to_html(small())


@pytest.mark.parametrize("kind", sorted(output.TEXT_FORMATS))
@pytest.mark.parametrize("records", [True, False])
def test_no_cell_is_lost(kind, records):
    made = large(12, 9, records=records)
    text = output.TEXT_FORMATS[kind](made)
    for of in made.cells.values():
        for number in (of.ours, of.published):
            assert number is None or re.search(rf"(?<![\d.]){number}(?!\d)", text), number
    assert text.count("⚑" if kind != "latex" else r"\triangleright") >= sum("⚑" in of.marks for of in made.cells.values())


@pytest.mark.parametrize("kind", sorted(output.TEXT_FORMATS))
def test_a_twin_shows_no_published_number(kind):
    twin, paper = (output.TEXT_FORMATS[kind](small(scale=scale)) for scale in ("mini", "published"))
    for number in ("90.8", "80.7", "77.9", "65.4"):
        assert number in paper
        assert number not in twin
    assert kind == "csv" or "embedded twin" in twin


@pytest.mark.parametrize("kind", ["text", "markdown", "html", "latex"])
def test_a_table_without_cells_or_columns_is_a_table(kind):
    for empty in (grid({}), grid({}, rows=(Line(name="lonely"),)), grid({}, columns=(Line(name="lonely"),))):
        assert "Ablation" in output.TEXT_FORMATS[kind](empty)


@given(NAMES)
def test_latex_leaves_no_sign_to_be_read_as_a_command(name):
    escaped = escape(name)
    assert escaped.isascii()
    assert escaped.isprintable()
    assert not escaped.startswith(("[", "*"))
    known = r"\\(text(backslash|asciicircum|asciitilde|less|greater|bar)|ldots|ss|[aAoO][eE]|[oOlLi])\{\}"
    code, accented, formula = r"\\texttt\{U\+[0-9A-F]{4,6}\}", r"\\['`^~=u.\"rHvc]\{[A-Za-z]\}", r"(?<!\\)\$[^$]*\$"
    rest = re.sub(rf"{known}|{code}|{accented}|{formula}|\\[{{}}$&#%_]|\{{\}}", "", escaped)
    assert not re.search(r"[\\{}$&#%^<>|_]", rest), (name, escaped)
    assert rest.count("~") == name.count("\u00a0")


@given(NAMES, NAMES, NAMES)
def test_names_of_any_signs_stay_in_their_cells(row, column, group):
    made = grid(
        {(row, column): cell(12.3, 45.6)}, rows=(Line(name=row, group=group),), columns=(Line(name=column, group=group),),
        notes=(group,), title=column,
    )  # fmt: skip
    back = next(csv.DictReader(io.StringIO(to_csv(made))))
    assert (back["row"], back["column"]) == (row, column)
    for line in to_markdown(made).splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3, line
    page = Rows(to_html(made))
    assert page.tags <= {"div", "style", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "br", "small", "p"}
    assert any(text == row for cells in page.rows for text, _ in cells) or "\r" in row or "\0" in row
    assert max(map(cell_len, to_text(made, 40).splitlines())) <= 40
    assert view(made).remarks()[-1] == one_line(group) or not one_line(group)


def test_hard_names_in_every_format():
    made = grid({(name, column): cell(1.0, 2.0) for name in HARD for column in HARD[:4]})
    for kind, write in output.TEXT_FORMATS.items():
        assert write(made), kind


def test_files_appear_whole(tmp_path):
    written = output.write_grid(small(), tmp_path / "deep")
    assert {kind: path.name for kind, path in written.items()} == {
        "csv": "table.csv", "latex": "table.tex", "markdown": "table.md", "html": "table.html", "png": "table.png",
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == sorted(path.name for path in written.values())
    assert written["csv"].read_text(encoding="utf-8") == to_csv(small())
    assert written["png"].read_bytes().startswith(b"\x89PNG")
