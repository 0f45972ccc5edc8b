"""The file of a published table: what it may say, and what is refused with the line that mends it."""

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.experiments.files import parse

SMALL = """
title: Two methods
question: Which is better?
published: doge/table_6
columns:
  - {name: B, group: Vision, overrides: [model=vit_b32, tasks=8], statistic: average, published: {model: vit_b32}}
  - sun397
rows:
  - {name: TA, overrides: [method=task_arithmetic], published: {method: task_arithmetic}}
  - {name: doGe, overrides: [method=doge_ta, method.eta=0.05], statistic: average, of: TA,
     published: {method: doge_ta, variant: ""}}
cells:
  - {row: TA, column: sun397, omit: true, reason: not printed}
  - {row: doGe, column: B, overrides: [method.eta=0.07], statistic: gain, reason: a setting of its own}
unanswered:
  - {published: {method: individual}, reason: not a merge}
claims:
  - {better: doGe, than: TA, column: B, says: it is better}
"""


def experiment(text: str = SMALL) -> experiments.Experiment:
    return parse(text, "doge/table_6", "file.yaml")


def test_cells_have_the_overrides_of_row_column_and_cell_and_the_later_one_wins() -> None:
    cells = {(cell.row, cell.column): cell for cell in experiments.cells(experiment())}
    assert [cell.row for cell in cells.values()] == ["TA", "TA", "doGe", "doGe"]
    [[run]] = cells["doGe", "B"].runs
    assert run.values == {"method": "doge_ta", "method.eta": "0.07", "model": "vit_b32", "tasks": "8", "seed": "0"}
    [[beside]] = cells["doGe", "B"].beside
    assert beside.values == {"method": "task_arithmetic", "model": "vit_b32", "tasks": "8", "seed": "0"}
    assert cells["doGe", "B"].published == {"model": "vit_b32", "method": "doge_ta", "variant": ""}


def test_the_statistic_of_the_cell_wins_over_the_row_and_the_row_over_the_column() -> None:
    cells = {(cell.row, cell.column): str(cell.statistic) for cell in experiments.cells(experiment())}
    assert cells == {("TA", "B"): "average", ("TA", "sun397"): "task:sun397", ("doGe", "B"): "gain", ("doGe", "sun397"): "average"}


def test_an_omitted_cell_needs_no_run() -> None:
    cell = next(cell for cell in experiments.cells(experiment()) if (cell.row, cell.column) == ("TA", "sun397"))
    assert cell.omitted == "not printed"
    assert cell.all_runs == ()


def test_seeds_of_the_line_replace_those_of_the_file() -> None:
    cell = experiments.cells(experiment(), ["seed=3", "seed=5"])[0]
    assert [run.values["seed"] for run in cell.runs[0]] == ["3", "5"]


def test_the_line_wins_and_where_it_runs_is_no_part_of_a_run() -> None:
    cell = experiments.cells(experiment(), ["steps=3", "results_dir=/tmp/r", "device=cpu", "logger=csv", "hydra.run.dir=x"])[0]
    assert cell.runs[0][0].values == {"method": "task_arithmetic", "model": "vit_b32", "tasks": "8", "seed": "0", "steps": "3"}


def test_a_run_does_not_depend_on_the_order_of_its_overrides() -> None:
    from fusionbench_lite.planning.experiments.runs import run_of

    assert run_of(["b=2", "+a=1"]) == run_of(["a=0", "a='1'", "b=2"])
    assert run_of(["a=1"]).id != run_of(["a=2"]).id


def test_distinct_runs_come_suite_by_suite() -> None:
    runs = experiments.distinct(experiments.cells(experiment(), ["seed=0"]))
    assert len(runs) == len(set(runs)) == 3  # TA in B; doGe in B, and in the column without a model


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("statistic: average", "statistic: avrage", "unknown statistic 'avrage': did you mean 'average'?"),
        ("title: Two methods", "titel: Two methods", "an experiment has no 'titel': did you mean 'title'?"),
        ("row: TA", "row: AT", "cells names the row 'AT'"),
        ("of: TA", "of: AT", "'doGe' is read beside the row 'AT'"),
        ("better: doGe", "better: Doge", "a claim names the row 'Doge'"),
        ("- sun397", "- {name: B}", "two columns are called 'B'; give each its own name"),
        ("omit: true, reason: not printed", "omit: true", "names row, column and reason"),
        ("reason: not a merge", "why: x", "an entry of unanswered has published and reason"),
        ("published: {model: vit_b32}", "published: {modell: vit_b32}", "published of column 'B' has no 'modell'"),
        ("overrides: [method=task_arithmetic]", "overrides: [task_arithmetic]", "overrides of row 'TA' is a list of KEY=VALUE"),
        ("column: sun397, omit", "column: B, reason: r, overrides: [a=1]}\n  - {row: TA, column: B, omit", "has two entries"),
        ("title: Two", "title: [Two", "file.yaml: "),
    ],
)
def test_what_is_wrong_is_said_with_the_file(old: str, new: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        experiment(SMALL.replace(old, new, 1))
    assert str(refused.value).startswith("file.yaml: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_gain_needs_a_row_to_be_read_beside() -> None:
    with pytest.raises(InputError, match="gain of 'doGe' and 'B' is read beside a row: add of: ROW"):
        experiments.cells(experiment(SMALL.replace(", of: TA", "")))


def test_an_unknown_experiment_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown experiment 'doge/tabel_6'.*doge/table_6"):
        experiments.read("doge/tabel_6")
