"""Names of tasks and paths with signs that a format, a terminal or a formula would read: all come out as they are."""

from __future__ import annotations

import csv
import html.parser
import io
import re

import pytest
from matplotlib.text import Text
from rich.console import Console

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation import columns
from fusionbench_lite.planning.experiments.statistics import parsed
from fusionbench_lite.tables import compare, frame, latex, learned, plot, records, render, style, terminal
from fusionbench_lite.tables.cells.formats import numbers
from fusionbench_lite.tables.rows import Row, Rows, load_records
from tests.support import grids
from tests.support.record_factory import TASKS, store

NAMES = [
    "R&D", "50%", "a|b", "c_d", "[set]", "[/bold]", "a`b`", "*x*", "~~y~~", "<b>z</b>", "$\\frac$", "a\\b", "#1", "{k}", "^2",
    "x,y",
    'say"so', ":smile:", "1e3", "null", "größe", "&amp;", "_private", "a.b", "index", "± 2",
]


def table(folder, names=NAMES, **kwargs):
    values = {method: {name: base + 0.01 * n for n, name in enumerate(names)} for method, base in (("tsv_m", 0.5), ("cart", 0.6))}
    keys = [store(folder, method, accuracies) for method, accuracies in values.items()]
    rows = Rows("odd", "Odd names", (Row("TSV-M", "tsv_m", tuple(keys[:1])), Row("[CART]", "cart", tuple(keys[1:]))))
    return frame.build(rows, load_records(folder, rows), **kwargs), rows


def test_every_column_of_a_frame_is_a_name_that_no_task_may_have(tmp_path):
    built, _ = table(tmp_path, TASKS, baseline="TSV-M")
    own = [name for name in built.frame.columns if name not in TASKS and not name.startswith(tuple(TASKS))]
    headers = [name for name in render.cells(built).columns if name not in TASKS]
    assert {"average_low", "difference_high", "records", "seconds", "method"} <= set(own)
    assert {"Average", "vs TSV-M", "Seconds"} <= set(headers)
    for name in (*own, *headers, built.frame.index.name):
        assert columns.hidden([name]) is not None, name
    for name in built.frame.columns:
        if name.startswith("digits_"):
            assert columns.hidden(["digits", name]) is not None, name


@pytest.mark.parametrize("name", ["method", "Average", "digits_low"])
def test_records_of_before_with_such_a_name_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=f"a task called '{name}' has no place in tables"):
        table(tmp_path, ["digits", name])


def test_csv_holds_the_names(tmp_path):
    built, _ = table(tmp_path)
    path = tmp_path / "table.csv"
    path.write_text(render.to_csv(built))
    back = frame.read_csv(path)
    for number, name in enumerate(NAMES):
        assert back.loc["TSV-M", name] == pytest.approx(50 + number)


def test_markdown_escapes_every_sign_that_it_reads(tmp_path):
    header = next(line for line in render.to_markdown(table(tmp_path)[0]).splitlines() if line.startswith("| Method"))
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", header)[2:-1]]
    assert [re.sub(r"\\(.)", r"\1", cell) for cell in cells][: len(NAMES)] == NAMES
    for cell in cells:
        assert not re.search(r"[|*_<>`\[\]~$&#]", re.sub(r"\\.", "", cell)), cell


def test_html_shows_the_names(tmp_path):
    class Heads(html.parser.HTMLParser):
        found: list[str]

        def handle_starttag(self, tag, attributes):
            self.found = [*getattr(self, "found", []), *([""] if tag == "th" else [])]
            self.inside = tag == "th"

        def handle_endtag(self, tag):
            self.inside = False

        def handle_data(self, text):
            if getattr(self, "inside", False):
                self.found[-1] += text

    parser = Heads()
    parser.feed(render.to_html(table(tmp_path)[0]))
    start = parser.found.index(NAMES[0])
    assert parser.found[start : start + len(NAMES)] == NAMES


def test_latex_escapes_every_sign_that_it_reads(tmp_path):
    text = latex.to_latex(table(tmp_path)[0])
    for name in NAMES:
        assert latex.escape(name) in text
    body = text[text.index(r"\toprule") : text.index(r"\midrule")]
    commands = r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|ss)\{\}|\\\"\{o\}"
    plain = re.sub(commands + r"|(?<=& )\{\}(?=[*[])|\$\\pm\$|\\[{}$&#%_]", "", body)
    assert not re.search(r"[$#%_^~<>{}]", plain)
    assert plain.count("&") == len(NAMES) + 3  # the average, its interval, seconds


@pytest.mark.parametrize("show", [terminal.print_table, "comparison"])
def test_a_terminal_reads_no_styles_in_names(tmp_path, show):
    built, rows = table(tmp_path)
    buffer = io.StringIO()
    console = Console(file=buffer, width=400)
    if show == "comparison":
        terminal.print_comparison(compare.compare(rows, load_records(tmp_path, rows), "TSV-M", "[CART]"), console)
        assert "only [CART]" in buffer.getvalue()
    else:
        show(built, console)
        assert "[CART]" in buffer.getvalue()
    for name in NAMES:
        assert name in buffer.getvalue(), name


def test_pictures_read_no_formulas_in_names(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(Text, "draw", lambda self, renderer, draw=Text.draw: (written.append(self), draw(self, renderer))[1])
    plot.draw(table(tmp_path)[0], tmp_path / "table.png", dpi=20)
    style.Sheet(4, 1, "$\\frac$ of $", "a $b$ c").save(tmp_path / "sheet.png", frame.pd.DataFrame({"a": [1]}))
    shown = {text._preprocess_math(text.get_text()) for text in written}
    assert {(name, False) for name in NAMES} <= shown
    assert not any(is_formula for _, is_formula in shown)


def test_what_was_learned_belongs_to_tasks_with_commas(tmp_path):
    from safetensors.numpy import save_file

    names = ["x,y", "z"]
    record = records.find(tmp_path, store(tmp_path, "adarank_ta", dict.fromkeys(names, 0.5)))
    values = {"coefficients/a": frame.pd.Series([0.1, 0.9]).to_numpy()}
    save_file(values, record.path / learned.LEARNED, {"tasks": ",".join(names)})
    assert learned.read_learned(record).tasks == ("x,y", "z")


def test_tasks_called_like_the_columns_of_a_grid_hide_none(tmp_path):
    """A grid's CSV has one line per cell: names of tasks are values of its column `column`, and `statistic` is task:NAME."""
    names = [name for name in numbers.HEADER if columns.refusal([name]) is None]
    assert {"row", "column", "statistic", "unit", "ours", "sd", "low", "high", "published", "marks", "record_keys"} <= set(names)
    cells = {("row", name): grids.cell(float(place), statistic=f"task:{name}") for place, name in enumerate(names)}
    lines = list(csv.DictReader(io.StringIO(numbers.to_csv(grids.grid(cells)))))
    assert [line["column"] for line in lines] == names
    assert [line["statistic"] for line in lines] == [f"task:{name}" for name in names]
    assert [float(line["ours"]) for line in lines] == list(range(len(names)))
    assert parsed("task:row").argument == "row"
    built, _ = table(tmp_path, names)  # a table of rows by tasks, whose columns are the tasks
    for place, name in enumerate(names):
        assert built.frame.loc["TSV-M", name] == pytest.approx(50 + place)


@pytest.mark.parametrize("name", ["average", "seeds", "difference", "family", "select"])
def test_columns_of_both_kinds_of_tables_are_no_names_of_tasks(name):
    assert columns.refusal([name]) == (name, "tables have a column of their own of that name")
