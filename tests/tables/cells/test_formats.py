"""Every format of a grid says what its cells hold."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fusionbench_lite.tables.cells import latex, output, picture, render, texts
from fusionbench_lite.tables.cells.grid import Cell
from fusionbench_lite.tables.render import BEST, SECOND
from tests.support.grids import ANSWERED, BETTER, PRINTED, grid, small

HARD = ["a & b_c", "100% #1 $x$", "{~^\\}", "<b>|*`", "α ≥ 2 – naïve 漢", "[red]x[/red]"]


def test_a_cell_says_both_sides() -> None:
    assert texts.lines(ANSWERED, 1) == ["80.4 ± 0.2 [79.9, 81.0]", "80.7 -0.3 =◇"]
    assert texts.lines(PRINTED, 1) == ["– 59.6 (57.1) ⚑"]
    assert texts.lines(Cell(statistic="gain", omitted="not printed"), 1) == [""]


def test_text_has_every_number_and_a_legend_of_the_marks_that_occur() -> None:
    text = render.to_text(small())
    for part in ("A table", "Which is better?", "80.4 ± 0.2 [79.9, 81.0]", "80.7 -0.3 =◇", "– 59.6 (57.1) ⚑", "85.0 [84.0, 86.0]",
                 "A note of the table.", "⚑ Task Arithmetic, gain: the tasks average 57.1"):
        assert part in text
    assert "† picked" not in text
    assert "Vision" in text


def test_wide_tables_are_cut_between_columns_and_no_cell_is_lost() -> None:
    columns = [f"column {number}" for number in range(30)]
    printed = [[float(10 * row + number) for number in range(30)] for row in range(3)]
    cells = [[Cell(statistic="average", unit="percent", published=value) for value in row] for row in printed]
    text = render.to_text(grid(cells, ["a", "b", "c"], columns), width=80)
    assert all(len(line) <= 80 for line in text.splitlines())
    for name in columns:
        assert name in text
    assert len(re.findall(r"– \d+\.0", text)) == 90


def test_csv_is_one_line_per_cell_at_full_precision() -> None:
    lines = list(csv.DictReader(io.StringIO(render.to_csv(small()))))
    assert tuple(lines[0]) == render.COLUMNS
    assert [(line["row"], line["column"]) for line in lines] == [
        ("Task Arithmetic", "B/32"), ("Task Arithmetic", "gain"), ("doGe TA", "B/32"), ("doGe TA", "gain"),
    ]
    first = lines[0]
    numbers = [float(first[name]) for name in ("ours", "sd", "low", "high", "published", "difference")]
    assert numbers == [80.43, 0.21, 79.9, 81, 80.7, -0.27]
    assert (first["marks"], first["family"], first["select"], first["record_keys"]) == ("=◇", "ta", "last", "0123456789abcdef")
    assert (lines[1]["published_corrected"], lines[1]["ours"], lines[1]["marks"]) == ("57.1", "", "–⚑")


def test_best_and_second_are_marked_among_comparable_rows_only() -> None:
    worse = Cell(statistic="average", unit="percent", ours=70.0, seeds=1, comparable=True)
    oracle = Cell(statistic="average", unit="percent", ours=99.0, seeds=1)
    table = grid([[ANSWERED], [BETTER], [worse], [oracle]], ["a", "b", "c", "d"], ["x"])
    assert texts.ranks(table, "x") == [SECOND, BEST, 0, 0]
    assert "**85.0 \\[84.0, 86.0\\]**" in render.to_markdown(table)


def test_where_less_is_better_the_least_is_best() -> None:
    fields = {"statistic": "seconds:merge", "unit": "seconds", "comparable": True, "higher": False}
    cells = [[Cell(ours=value, **fields)] for value in (3.0, 1.0, 2.0)]  # type: ignore[arg-type]
    assert texts.ranks(grid(cells, ["a", "b", "c"], ["x"]), "x") == [0, BEST, SECOND]


def test_a_column_with_one_result_has_no_best() -> None:
    assert texts.ranks(grid([[BETTER], [PRINTED]], ["a", "b"], ["x"]), "x") == [0, 0]


def test_a_twin_is_headed_as_one_and_shows_no_target() -> None:
    table = grid([[BETTER]], ["a"], ["x"], scale="mini")
    for text in (render.to_text(table), render.to_markdown(table), render.to_html(table), latex.to_latex(table)):
        assert "Embedded twin of: A table" in text
        assert "published value" not in text.lower()


def test_digits_follow_the_paper() -> None:
    cells = [[Cell(statistic="average", unit="percent", published=value)] for value in (87.03, 86.1)]
    assert texts.digits(grid(cells, ["a", "b"], ["x"]), "x") == 2
    counts = [[Cell(statistic="parameters:total", unit="count", ours=907589640, published=907.6e6)]]
    assert texts.lines(counts[0][0], texts.digits(grid(counts, ["a"], ["x"]), "x"))[0] == "907,589,640"


def test_markdown_and_html_hold_every_cell_and_escape_names() -> None:
    table = grid([[ANSWERED]] * len(HARD), HARD, ["a|b<c>"])
    markdown, html = render.to_markdown(table), render.to_html(table)
    assert markdown.count("80.4 ± 0.2") == html.count("80.4 ± 0.2") == len(HARD)
    assert "a\\|b\\<c\\>" in markdown
    assert "<b>|" not in html
    assert "&lt;b&gt;|*`" in html
    assert html.count("<tr>") == html.count("</tr>")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1


@given(st.text(min_size=1, max_size=30))
def test_latex_escapes_whatever_a_name_has(name: str) -> None:
    table = latex.to_latex(grid([[ANSWERED]], [name], ["x"]))
    body = table.split(r"\midrule")[1].split(r"\bottomrule")[0]
    plain = re.sub(r"\\[&%$#_{}]|\\text\w+\{\}|\$[^$]*\$|\\ldots\{\}|\\shortstack\[r\]|\\\\", "", body)
    assert plain.count("&") == 1
    assert not set("%#_^~") & set(plain)
    assert body.count("{") - body.count(r"\{") == body.count("}") - body.count(r"\}")


def test_latex_has_groups_and_cuts_wide_tables() -> None:
    text = latex.to_latex(small())
    assert r"\multicolumn{2}{c}{Vision}" in text
    assert r"\cmidrule(lr){2-3}" in text
    assert r"\textit{Data-free}" in text
    assert r"\textbf{85.0 [84.0, 86.0]}" in text
    wide = latex.to_latex(grid([[PRINTED] * 20], ["a"], [f"c{n}" for n in range(20)]))
    assert wide.count(r"\begin{tabular}") == 3


def test_pictures_have_a_panel_per_column(tmp_path: Path) -> None:
    picture.draw(small(), tmp_path / "a.png")
    picture.draw(grid([[PRINTED] * 13], ["a"], [f"c{n}" for n in range(13)]), tmp_path / "b.png")
    small_one, large = (Image.open(tmp_path / name) for name in ("a.png", "b.png"))
    assert large.size[1] > small_one.size[1]
    assert small_one.convert("L").getextrema() != (255, 255)


def test_every_format_is_written_whole(tmp_path: Path) -> None:
    written = output.write_grid(small(), tmp_path / "table")
    assert {path.name for path in written.values()} == {"table.csv", "table.tex", "table.md", "table.html", "table.png"}
    assert {path.name for path in (tmp_path / "table").iterdir()} == {path.name for path in written.values()}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles_with_a_real_engine(tmp_path: Path) -> None:
    tables = [small(), grid([[ANSWERED]] * len(HARD), HARD, HARD[:1]), grid([[PRINTED] * 20], ["a"], [f"c{n}" for n in range(20)])]
    bodies = [latex.to_latex(table).replace("tab:doge-table-1", f"tab:{n}") for n, table in enumerate(tables)]
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage{siunitx}\n\\begin{document}\n"
    document = head + "\n\\clearpage\n".join(bodies) + "\n\\end{document}\n"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "t.pdf").stat().st_size > 1000
