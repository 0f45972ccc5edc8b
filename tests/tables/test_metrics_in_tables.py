"""Tables, comparisons and pictures of records that were judged by more than accuracy."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation import metrics
from fusionbench_lite.evaluation.measures import ACCURACY, LOWER, Measure
from fusionbench_lite.evaluation.results import TaskResult
from fusionbench_lite.pictures import main as pictures
from fusionbench_lite.running import recording
from fusionbench_lite.tables import course_pictures, frame, latex, output, plot, records, render, style, terminal
from fusionbench_lite.tables.compare import compare
from fusionbench_lite.tables.rows import Row, Rows, load_records, write_rows
from fusionbench_lite.tables.statistics import mcnemar
from tests.support.record_factory import result, store

MATTHEWS = metrics.get("matthews").measure
LOSS = Measure("loss", "loss", "nats", LOWER)
SKILLS = {"task_arithmetic": 0.7, "tsv_m": 0.8, "cart": 0.9}


def judged(skill: float, kinds: dict[str, str], seed: int = 0, size: int = 240) -> dict[str, TaskResult]:
    """Results by task: the same examples for every skill, of which about that part is right."""
    found = {}
    for number, (task, name) in enumerate(kinds.items()):
        numbers = np.random.default_rng([seed, number])
        labels, luck, noise = numbers.integers(0, 2, size), numbers.random(size), numbers.normal(size=size)
        predictions = np.where(luck < skill, labels, 1 - labels)
        if name == "spearman":
            predictions, labels = skill * labels + (1 - skill) * noise, labels + 0.1 * luck
        found[task] = TaskResult(predictions, labels, name)
    return found


def keep(folder, method, found, *, seed=0, step=0, **given) -> str:
    """Write the record of these results through the writer of runs; returns its key."""
    chosen = {"last": recording.Selection(step, False, found)}
    data = result(method, {"last": recording._selection(chosen["last"])}, seed=seed, **given)
    records.write(folder, data, recording.samples(chosen))
    return str(data["key"])


def experiment(folder, kinds: dict[str, str], seeds: int = 1) -> Rows:
    lines = [
        Row(method, method, tuple(keep(folder, method, judged(skill, kinds, seed), seed=seed) for seed in range(seeds)))
        for method, skill in SKILLS.items()
    ]
    rows = Rows("mini/glue", "Merging on GLUE", tuple(lines))
    write_rows(folder, rows)
    return rows


def table_of(folder, kinds, **given) -> frame.Table:
    rows = experiment(folder, kinds)
    return frame.build(rows, load_records(folder, rows), **given)


def said(comparison) -> str:
    buffer = io.StringIO()
    terminal.print_comparison(comparison, Console(file=buffer, width=160))
    return buffer.getvalue()


def with_losses(folder, losses: dict[str, float]) -> Rows:
    """Records with one task of accuracy and one of a metric that this version does not know, in nats, lower is better."""
    lines = []
    for method, value in losses.items():
        cells = recording._selection(recording.Selection(0, False, judged(0.8, {"sst2": "accuracy"})))
        cell = {"metric": "loss", "value": value, "examples": 3, "interval": [value - 0.1, value + 0.1]}
        cells["per_task"]["lm"] = cell | {"label": "loss", "unit": "nats", "direction": "lower"}
        cells["average"] = None
        data = result(method, {"last": cells})
        samples = recording.samples({"last": recording.Selection(0, False, judged(0.8, {"sst2": "accuracy"}))})
        records.write(folder, data, samples | {f"last/lm/{part}": np.zeros(3) for part in ("predictions", "labels")})
        lines.append(Row(method, method, (data["key"],)))
    rows = Rows("mini/lm", "T", tuple(lines))
    write_rows(folder, rows)
    return rows


def test_a_table_of_matthews_correlations(tmp_path):
    kinds = {"cola": "matthews"}
    table = table_of(tmp_path, kinds)
    values = {method: judged(skill, kinds)["cola"] for method, skill in SKILLS.items()}
    for method, found in values.items():
        row = table.frame.loc[method]
        assert row["cola"] == row["average"] == pytest.approx(100 * found.value)
        assert (row["average_low"], row["average_high"]) == pytest.approx([100 * end for end in found.interval])
    assert table.measures == {"cola": MATTHEWS, "average": MATTHEWS}
    assert table.notes[0].startswith("Matthews correlation in percent on 240 test examples per task.")
    for text in (terminal.to_text(table), render.to_markdown(table), render.to_html(table), latex.to_latex(table)):
        assert "ccuracy" not in text
        assert f"{100 * values['cart'].value:.1f}" in text
    assert render.to_csv(table).splitlines()[0].endswith(",records,metrics")
    assert render.to_csv(table).splitlines()[1].endswith(",cola=matthews_percent")


def test_a_mixed_table_averages_what_shares_a_unit_and_says_so(tmp_path):
    kinds = {"cola": "matthews", "stsb": "spearman", "sst2": "accuracy", "mnli": "accuracy", "qnli": "accuracy"}
    table = table_of(tmp_path, kinds)
    found = judged(SKILLS["cart"], kinds)
    assert table.frame.loc["cart", "average"] == pytest.approx(100 * np.mean([r.value for r in found.values()]))
    assert table.measures["average"] == Measure("score", "score")
    assert table.notes[0] == (
        "Score in percent on 240 test examples per task. Matthews correlation in percent for cola; Spearman correlation in "
        "percent for stsb; accuracy in percent for the others. The average is the unweighted mean over them, as in GLUE's "
        "tables. The 95% interval of the average covers the sampling of test examples only, not training or seeds."
    )
    assert render.ranks(table).loc["cart"].drop(["95% interval", "Seconds"]).eq(render.BEST).all()


def test_units_that_differ_have_no_average(tmp_path):
    rows = with_losses(tmp_path, {"task_arithmetic": 1.2344, "tsv_m": 0.5, "cart": 0.75})
    found = load_records(tmp_path, rows)
    table = frame.build(rows, found)
    assert table.frame["average"].isna().all()
    assert "no average" in table.notes[0]
    assert "accuracy in percent for sst2; loss in nats (lower is better) for lm" in table.notes[0].replace("Accuracy", "accuracy")
    shown = render.cells(table)
    assert shown["lm"].tolist() == ["1.234", "0.500", "0.750"]
    assert shown["Average"].tolist() == shown["95% interval"].tolist() == [render.ABSENT] * 3
    assert render.ranks(table)["lm"].tolist() == [0, render.BEST, render.SECOND], "the lowest loss is the best"
    output.save(table, "png", tmp_path / "table.png")
    with pytest.raises(InputError, match="need tasks of one unit and direction, got sst2: accuracy in percent, lm: loss in nats"):
        compare(rows, found, "cart", "tsv_m")


def test_rows_judged_by_different_metrics_are_refused(tmp_path):
    keys = [keep(tmp_path, m, judged(0.8, {"cola": name})) for m, name in (("cart", "accuracy"), ("tsv_m", "matthews"))]
    rows = Rows("x", "T", tuple(Row(name, name, (key,)) for name, key in zip(("cart", "tsv_m"), keys, strict=True)))
    with pytest.raises(InputError, match="'cola' is judged by accuracy in percent in cart.* and by Matthews correlation"):
        frame.build(rows, load_records(tmp_path, rows))
    with pytest.raises(InputError, match="run both with the same metric"):
        compare(rows, load_records(tmp_path, rows), "cart", "tsv_m")


def test_a_comparison_of_matthews_is_a_paired_bootstrap(tmp_path):
    kinds = {"cola": "matthews"}
    rows = experiment(tmp_path, kinds)
    comparison = compare(rows, load_records(tmp_path, rows), "cart", "tsv_m")
    a, b = (judged(SKILLS[method], kinds)["cola"] for method in ("cart", "tsv_m"))
    assert comparison.paired.difference == pytest.approx(a.value - b.value)
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(1000):
        chosen = generator.integers(0, 240, 240)
        draws.append(
            np.corrcoef(a.predictions[chosen], a.labels[chosen])[0, 1] - np.corrcoef(b.predictions[chosen], b.labels[chosen])[0, 1]
        )
    # Ends of intervals from 1,000 and 2,000 resamples: the noise of either is about 0.005.
    assert comparison.paired.interval == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)
    width = comparison.paired.interval[1] - comparison.paired.interval[0]
    assert width < 0.8 * math.hypot(*(r.interval[1] - r.interval[0] for r in (a, b))), "pairing narrows the interval"
    assert comparison.paired.exact_p is None
    text = said(comparison)
    assert f"{100 * (a.value - b.value):+.2f} points of average Matthews correlation" in text
    assert "no example is right or wrong" in text
    back = compare(rows, load_records(tmp_path, rows), "tsv_m", "cart").paired
    assert back.difference == -comparison.paired.difference
    assert compare(rows, load_records(tmp_path, rows), "cart", "tsv_m") == comparison


def test_a_mixed_comparison_tests_the_examples_that_are_right_or_wrong(tmp_path):
    kinds = {"cola": "matthews", "sst2": "accuracy"}
    rows = experiment(tmp_path, kinds)
    comparison = compare(rows, load_records(tmp_path, rows), "cart", "tsv_m")
    a, b = (judged(SKILLS[method], kinds) for method in ("cart", "tsv_m"))
    assert comparison.paired.difference == pytest.approx(np.mean([a[task].value - b[task].value for task in kinds]))
    low, high = comparison.paired.interval
    assert low < comparison.paired.difference < high
    only_a, only_b = int((a["sst2"].correct & ~b["sst2"].correct).sum()), int((b["sst2"].correct & ~a["sst2"].correct).sum())
    assert (comparison.paired.exact_p, comparison.paired.mid_p) == mcnemar(only_a, only_b)
    assert comparison.per_task["cola"][1:] == (None, None)
    assert comparison.paired.examples == 480
    text = said(comparison)
    assert "points of average score" in text
    assert "McNemar over all examples of sst2:" in text
    assert render.ABSENT in next(line for line in text.splitlines() if line.strip().startswith("cola"))


def test_seeds_of_a_metric_of_the_whole_set_are_averaged(tmp_path):
    kinds = {"cola": "matthews", "sst2": "accuracy"}
    rows = experiment(tmp_path, kinds, seeds=2)
    comparison = compare(rows, load_records(tmp_path, rows), "cart", "tsv_m")
    values = [[judged(SKILLS[m], kinds, seed)["cola"].value for m in ("cart", "tsv_m")] for seed in (0, 1)]
    assert comparison.per_task["cola"][0] == pytest.approx(np.mean([a - b for a, b in values]))
    assert comparison.seeds == 2
    table = frame.build(rows, load_records(tmp_path, rows), baseline="tsv_m")
    assert table.frame.loc["cart", "difference"] == pytest.approx(100 * comparison.paired.difference)


def test_other_labels_are_not_the_same_examples(tmp_path):
    other = judged(0.9, {"cola": "matthews"}, seed=5)
    keys = keep(tmp_path, "cart", judged(0.9, {"cola": "matthews"})), keep(tmp_path, "tsv_m", other)
    rows = Rows("x", "T", (Row("a", "cart", keys[:1]), Row("b", "tsv_m", keys[1:])))
    with pytest.raises(InputError, match="different labels of task 'cola'"):
        compare(rows, load_records(tmp_path, rows), "a", "b")


def test_records_of_accuracy_need_no_words_about_it(tmp_path):
    """Those of version 0.4: neither labels nor unit, read and shown as before."""
    key = store(tmp_path, "tsv_m", {"digits": 0.8, "letters": 0.7})
    record = records.find(tmp_path, key)
    assert '"label"' not in json.dumps(record.data["selections"])
    assert record.measures() == {"digits": ACCURACY, "letters": ACCURACY}
    assert record.answers("last") == {}


@pytest.fixture
def drawn(monkeypatch):
    """The text of every panel that is drawn: headings and axis labels."""
    texts: list[str] = []
    monkeypatch.setattr(style, "DPI", 40)
    heading = style.heading
    monkeypatch.setattr(style, "heading", lambda axes, text, **kw: (texts.append(text), heading(axes, text, **kw))[1])
    return texts


def adapted(folder, kinds, **given) -> str:
    key = keep(folder, "adarank_ta", judged(0.8, kinds), step=20, **given)
    course = pd.DataFrame({"step": range(21), "loss": np.linspace(2, 1, 21), "average": [0.5] + [np.nan] * 19 + [0.6]})
    for task, name in kinds.items():
        course[f"{name}/{task}"] = course["average"]
    course.to_csv(records.find(folder, key).path / "history.csv", index=False)
    return key


@pytest.mark.parametrize(
    ("kinds", "label"),
    [({"cola": "matthews"}, "Matthews correlation"), ({"cola": "matthews", "sst2": "accuracy"}, "score"),
     ({"sst2": "accuracy"}, "accuracy")],
)  # fmt: skip
def test_pictures_of_a_course_name_the_metric(tmp_path, drawn, kinds, label):
    key = adapted(tmp_path, kinds)
    write_rows(tmp_path, Rows("x/y", "T", (Row("a", "adarank_ta", (key,)),)))
    for what in (key, "x/y"):
        assert pictures([what, "--results-dir", str(tmp_path)]) == 0
    assert f"{label} on the test split (%)" in drawn
    assert f"average {label} (%)" in drawn
    numbers = pd.read_csv(tmp_path / "pictures" / "x/y" / "adaptive_rows.csv")
    assert numbers[numbers["quantity"] == "average"]["mean"].tolist() == [50, 60]


def test_the_lines_of_a_mixed_course_are_those_of_its_tasks(tmp_path):
    kinds = {"cola": "matthews", "sst2": "accuracy"}
    record = records.find(tmp_path, adapted(tmp_path, kinds))
    sheet = style.Sheet(5, 3, "T")
    axes = sheet.axes(1, 1, 3, 2)
    history = course_pictures.read_history(record)
    course_pictures._values(axes, history[["average", "matthews/cola", "accuracy/sst2"]], record.measures())
    assert {text.get_text() for text in axes.texts} == {"cola (Matthews correlation)", "sst2", "average 60.0"}


def test_the_picture_of_a_table_names_the_unit(tmp_path, monkeypatch):
    rows = with_losses(tmp_path, {"task_arithmetic": 1.2, "cart": 0.75})
    mixed = frame.build(rows, load_records(tmp_path, rows))
    plain = table_of(tmp_path / "glue", {"cola": "matthews"})
    labels: list[str] = []
    original = plot.Axes.set_xlabel
    monkeypatch.setattr(plot.Axes, "set_xlabel", lambda axes, text, **kw: (labels.append(text), original(axes, text, **kw))[1])
    for table in (mixed, plain):
        plot.draw(table, tmp_path / "out.png", dpi=40)
    assert labels == ["No average: units or directions differ", "Average over tasks (%), 95% interval"]
