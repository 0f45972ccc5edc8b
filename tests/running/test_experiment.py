"""Experiments: rows become records once, and a table in every format."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import yaml
from hydra import initialize_config_dir

from fusionbench_lite import registry
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import config_dir, experiments_dir
from fusionbench_lite.planning import config
from fusionbench_lite.running import experiment
from fusionbench_lite.tables import records
from tests.running.test_run import SMALL

config.register()
NAMES = sorted(f"mini/{path.stem}" for path in (experiments_dir() / "mini").glob("*.yaml"))


@pytest.fixture
def composing():
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_every_experiment_resolves(composing, name, tmp_path):
    """Rows of another experiment are resolved there, with a seed each: composing them is what takes time."""
    extra = [f"data_dir={tmp_path}"] if name in ("mini/real32", "mini/minilm") else []
    read = experiment.read(name)
    written = yaml.safe_load((experiments_dir() / f"{name}.yaml").read_text())["rows"]
    own = {row["name"]: read.rows[row["name"]] for row in written if isinstance(row, dict)}
    plans = experiment.plans(dataclasses.replace(read, seeds=read.seeds[:1], rows=own), extra)
    assert set(plans) == set(own)
    assert set(own) | {row for other in written if isinstance(other, str) for row in experiment.read(other).rows} == set(read.rows)


def test_a_row_has_a_plan_for_every_seed(composing):
    read = experiment.read("mini/three_seeds")
    (plans,) = experiment.plans(dataclasses.replace(read, rows={"TSV-M": read.rows["TSV-M"]}), []).values()
    assert [plan.seed for plan in plans] == list(read.seeds) == [0, 1, 2]


def test_the_demo_shows_every_method_that_adapts_nothing():
    shown = {override.removeprefix("method=") for row in experiment.read("mini/demo").rows.values() for override in row}
    assert {name for name in registry.names() if not registry.get(name).adaptive} <= shown


def test_rows_of_another_experiment_are_shared():
    demo, three = experiment.read("mini/demo"), experiment.read("mini/three_seeds")
    assert list(three.rows)[: len(demo.rows)] == list(demo.rows)
    assert all(three.rows[name] == overrides for name, overrides in demo.rows.items())


def test_command_line_wins_and_steps_reach_adaptive_rows_only(composing):
    plans = experiment.plans(experiment.read("mini/demo"), ["experiment=mini/demo", "seed=7", "steps=3"])
    assert {plan.seed for row in plans.values() for plan in row} == {7}
    assert plans["AdaRank (CART)"][0].setting("steps") == 3
    assert not plans["Task arithmetic"][0].settings


def test_unknown_experiment():
    with pytest.raises(InputError, match="unknown experiment 'mini/dem': did you mean 'mini/demo'"):
        experiment.read("mini/dem")


@pytest.mark.slow
def test_a_table_is_written_once_and_then_found(command, tmp_path):
    arguments = ("experiment=mini/first_look", "steps=1", *SMALL)
    first = command(*arguments)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "results" / "tables" / "mini" / "first_look"
    assert {path.name for path in folder.iterdir()} == {"rows.json", "table.csv", "table.tex", "table.md", "table.png"}
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == 5
    assert table["trial"].all()
    made = len(records.read_all(tmp_path / "results"))
    second = command(*arguments)
    assert second.returncode == 0
    assert ", seed 0:" in first.stdout
    assert ", seed 0:" not in second.stdout
    assert len(records.read_all(tmp_path / "results")) == made == 5
    shown = command("mini/first_look", "--format", "latex", module="fusionbench_lite.tables")
    assert shown.returncode == 0, shown.stderr
    assert "\\toprule" in shown.stdout
