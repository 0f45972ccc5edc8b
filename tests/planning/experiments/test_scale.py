"""The twin of a published table on the embedded suites."""

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.experiments.files import parse

TABLE = """
title: Methods
published: doge/table_1
select: best_test
defaults: [model=vit_l14, tasks=8, checkpoints=ta]
columns: [sun397, svhn, gtsrb, average]
rows:
  - {name: TA, overrides: [method=task_arithmetic], published: {method: task_arithmetic}}
  - {name: Ada, overrides: [method=adamerging_layerwise, preset=adarank, steps=100], published: {method: adamerging_layerwise}}
  - {name: Short, overrides: [method=adamerging_layerwise, steps=10], mini: [method=adamerging_layerwise, steps=5]}
claims:
  - {better: Ada, than: TA, column: average}
"""


def twin(text: str = TABLE) -> experiments.Experiment:
    return experiments.scaled(parse(text, "doge/table_1", "file.yaml"), "mini")


def test_models_tasks_and_columns_are_the_embedded_ones() -> None:
    found = twin()
    assert found.scale == "mini"
    assert found.published is None
    assert [line.name for line in found.columns] == ["gtsrb", "average"]  # no twin of the others among the four
    assert [line.statistic for line in found.columns] == ["task:signs", "average"]
    run = experiments.cells(found)[0].runs[0][0]
    assert run.values["model"] == "vit_mini"
    assert run.values["tasks"] == "[garments,counts,textures,signs]"
    assert "checkpoints" not in run.values


def test_budgets_of_the_paper_are_left_out_unless_the_row_has_its_own_for_the_twin() -> None:
    rows = {line.name: line.overrides for line in twin().rows}
    assert rows["Ada"] == ("method=adamerging_layerwise",)
    assert rows["Short"] == ("method=adamerging_layerwise", "steps=5")


def test_a_twin_has_three_seeds_and_no_published_numbers() -> None:
    cells = experiments.cells(twin())
    assert {len(variation) for cell in cells for variation in cell.runs} == {3}
    assert {cell.published for cell in cells} == {None}


def test_lists_of_tasks_are_translated_name_by_name() -> None:
    text = TABLE.replace("tasks=8", '"tasks=[svhn,mnist]", "checkpoints.experts=[svhn]"')
    values = experiments.cells(twin(text))[0].runs[0][0].values
    assert values["tasks"] == "[house_numbers,digits]"
    assert values["checkpoints.experts"] == "[house_numbers]"


def test_what_has_no_twin_is_refused() -> None:
    with pytest.raises(InputError, match="model 'vit_h14' has no embedded twin"):
        twin(TABLE.replace("vit_l14", "vit_h14"))
    with pytest.raises(InputError, match="scale is 'tiny'"):
        experiments.scaled(experiments.read("doge/table_6"), "tiny")


def test_every_twin_exists() -> None:
    """conf/twins.yaml names tasks and sets of the embedded suites; models are checked by the experiments' own test."""
    import yaml

    from fusionbench_lite.base.task_sets import tasks_of
    from fusionbench_lite.paths import config_dir

    table = yaml.safe_load((config_dir() / "twins.yaml").read_text())
    embedded = {*tasks_of("mini8"), *tasks_of("mini_text")}
    assert set(table["tasks"].values()) <= embedded | {"instructions"}
    assert set(tasks_of("mini8")) <= set(table["tasks"].values())
