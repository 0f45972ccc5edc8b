"""Tables in every format: ranks, references, flags, seeds and trials."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console

from fusionbench_lite.errors import InputError
from fusionbench_lite.registry import FAMILIES
from fusionbench_lite.tables import frame, latex, output, plot, render, terminal
from fusionbench_lite.tables.__main__ import main
from fusionbench_lite.tables.compare import compare
from fusionbench_lite.tables.rows import Row, Rows, load_records
from tests.support.record_factory import TASKS, experiment, store


def _table(folder, select="last", **kwargs):
    rows = experiment(folder, **kwargs)
    return frame.build(rows, load_records(folder, rows), select)


def _text(table, width=160):
    buffer = io.StringIO()
    terminal.print_table(table, Console(file=buffer, width=width, force_terminal=True, color_system=None))
    return buffer.getvalue()


FORMATS = {"csv": render.to_csv, "markdown": render.to_markdown, "html": render.to_html, "latex": latex.to_latex, "text": _text}


def test_averages_intervals_and_seconds(tmp_path):
    wide = _table(tmp_path).frame
    row = wide.loc["task arithmetic"]
    assert row["average"] == pytest.approx(100 * (0.70 + 0.71 + 0.72 + 0.70) / 4)
    assert row["average_low"] < row["average"] < row["average_high"]
    assert row["seconds"] == pytest.approx(1.25)
    assert list(wide.index[:3]) == ["pretrained", "individual", "traditional mtl"]


def test_seeds_give_mean_and_sample_deviation(tmp_path):
    wide = _table(tmp_path, seeds=3).frame
    row = wide.loc["tsv m"]
    assert row["seeds"] == 3
    assert row["digits"] == pytest.approx(79.0)
    assert row["digits_std"] == pytest.approx(1.0)
    assert "±" in _text(_table(tmp_path, seeds=3), 220)


@pytest.mark.parametrize("kind", FORMATS)
def test_selection_on_test_labels_is_flagged_in_every_format(tmp_path, kind):
    flagged, plain = (FORMATS[kind](_table(tmp_path / select, select)) for select in ("best_test", "last"))
    assert "test labels" in flagged or "True" in flagged
    if kind == "csv":
        assert plain.count("True") == 0
        return
    dagger = r"$^\dagger$" if kind == "latex" else "†"
    assert dagger in flagged
    assert dagger not in plain


def test_latex_marks_best_and_second_of_each_column_but_no_reference(tmp_path):
    text = latex.to_latex(_table(tmp_path))
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert text.count(r"\midrule") == 2
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert body.count(r"\textbf{") == len(TASKS) + 1
    assert body.count(r"\underline{") == len(TASKS) + 1
    for line in body.splitlines():
        if line.startswith(("individual", "pretrained", "traditional")):
            assert r"\textbf" not in line
        if line.startswith("adarank"):
            assert line.count(r"\textbf") == len(TASKS) + 1


def test_ties_share_their_rank(tmp_path):
    keys = [store(tmp_path, method, dict.fromkeys(TASKS, 0.8)) for method in ("cart", "tsv_m")]
    keys.append(store(tmp_path, "iso_c", dict.fromkeys(TASKS, 0.7)))
    rows = Rows("x", "T", tuple(Row(m, m, (k,)) for m, k in zip(("cart", "tsv_m", "iso_c"), keys, strict=True)))
    ranked = render.ranks(frame.build(rows, load_records(tmp_path, rows)))
    assert ranked["digits"].tolist() == [render.BEST, render.BEST, render.SECOND]


def test_latex_escapes_names(tmp_path):
    key = store(tmp_path, "cart", dict.fromkeys(TASKS, 0.8))
    rows = Rows("x", "50 % & more_or_less", (Row("a_b & 3 %", "cart", (key,)),))
    text = latex.to_latex(frame.build(rows, load_records(tmp_path, rows)))
    assert r"a\_b \& 3 \%" in text
    assert r"50 \% \& more\_or\_less" in text


def test_csv_round_trip(tmp_path):
    table = _table(tmp_path, seeds=2)
    written = output.write_table(table, tmp_path / "tables")
    again = frame.read_csv(tmp_path / "tables" / "table.csv")
    for column in ("digits", "average", "average_low", "average_std", "seconds"):
        assert again[column].tolist() == table.frame[column].tolist()
    assert {path.name for path in written.values()} == {"table.csv", "table.tex", "table.md", "table.png"}
    with Image.open(tmp_path / "tables" / "table.png") as picture:
        assert min(picture.size) > 500


def test_trials_are_marked_and_never_mixed(tmp_path):
    assert "TRIAL" in _text(_table(tmp_path / "trial", limit=50))
    rows = experiment(tmp_path / "mixed")
    trial = store(tmp_path / "mixed", "cart", dict.fromkeys(TASKS, 0.9), limit=50)
    mixed = Rows(rows.experiment, rows.title, (*rows.rows, Row("cart", "cart", (trial,))))
    table = frame.build(mixed, load_records(tmp_path / "mixed", mixed))
    assert "cart" not in table.frame.index or table.frame.loc["cart"].isna().any()
    assert not table.trial


def test_rows_over_different_tasks_are_refused(tmp_path):
    keys = (store(tmp_path, "cart", dict.fromkeys(TASKS, 0.8)), store(tmp_path, "tsv_m", {"other": 0.8}))
    rows = Rows("x", "T", (Row("a", "cart", keys[:1]), Row("b", "tsv_m", keys[1:])))
    with pytest.raises(InputError, match="different tasks"):
        frame.build(rows, load_records(tmp_path, rows))


def test_comparison_is_paired_on_the_same_examples(tmp_path):
    rows = experiment(tmp_path, seeds=2)
    result = compare(rows, load_records(tmp_path, rows), "tsv_m", "task arithmetic")
    assert result.paired.difference == pytest.approx(0.08)
    assert result.seeds == 2
    assert result.paired.interval[0] > 0
    assert result.paired.only_b == 0


def test_a_narrow_terminal_still_names_rows_and_average(tmp_path):
    text = _text(_table(tmp_path), 80)
    assert "adarank" in text
    assert re.search(r"86\.\d", text)
    assert max(map(len, text.splitlines())) <= 80


def test_command_line(tmp_path, capsys):
    experiment(tmp_path)
    for kind, needle in (("csv", "label,"), ("latex", "\\toprule"), ("markdown", "| "), ("html", "<table"), ("text", "tsv m")):
        assert main(["mini/demo", "--results-dir", str(tmp_path), "--format", kind]) == 0
        assert needle in capsys.readouterr().out
    picture = tmp_path / "out.png"
    assert main(["mini/demo", "--results-dir", str(tmp_path), "--format", "png", "--output", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    capsys.readouterr()
    assert main(["mini/demo", "--results-dir", str(tmp_path), "--compare", "tsv m", "task arithmetic"]) == 0
    assert "8.0" in capsys.readouterr().out
    for arguments, message in (
        (["mini/dem"], "mini/demo"), (["mini/demo", "--compare", "tsv m", "tsw m"], "tsv m"),
        (["mini/demo", "--baseline", "nothing"], "nothing"),
    ):
        assert main([*arguments, "--results-dir", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_no_torch():
    code = (
        "import sys; from fusionbench_lite.tables import frame, latex, output, plot, render, terminal, compare;"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_every_family_of_methods_has_a_colour_of_its_own():
    assert set(plot.COLOURS) == set(FAMILIES)
    assert len(set(plot.COLOURS.values())) == len(FAMILIES)
