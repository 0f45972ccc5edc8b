"""What a command line gives is given: it wins over presets whatever its value, and its source says so."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hydra import initialize_config_dir

from fusionbench_lite import registry
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning import given, plan
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.planning.config import composed
from fusionbench_lite.planning.settings import Sourced
from fusionbench_lite.running import experiment

FUSIONBENCH = ["method=adamerging_layerwise", "preset=fusionbench"]
"""Its clamp is false; the default is true."""


def sourced(line: list[str], name: str) -> Sourced:
    found = plan_of(line)
    return {**found.hyperparameters, **found.settings}[name]


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["method=cart", "method.lr=1"], ["method", "method.lr"]),
        (["+method.lr=1", "++method.scaling=null"], ["method.lr", "method.scaling"]),
        (["method.lr=1", "~method.lr"], []),
        (["method.lr=1", "method.scaling=1", "method.lr=2"], ["method.scaling", "method.lr"]),
        (["method.a={b: 1, c: {d: null}}", "method.a={b: 2}"], ["method.a.c.d", "method.a.b"]),
        (["method.a.b=1", "method.a=3"], ["method.a"]),
        (["method.a.b=1", "~method.a"], []),
        (["method.lr=1", "method=cart"], ["method.lr", "method"]),
        (["tasks=[a,b]", "method.x='k=1, ~l'", "method.y=", 'method.z="{a: 1}"'], ["tasks", "method.x", "method.y", "method.z"]),
        ([], []),
    ],
)
def test_keys_are_read_in_the_grammar_of_overrides(overrides: list[str], keys: list[str]):
    assert [".".join(key) for key in given.read(overrides).keys or ()] == keys


@pytest.mark.parametrize(
    "override",
    [
        "method.clamp=true", "++method.clamp=true", "method={clamp: true}", "method={id: adamerging_layerwise, clamp: true}",
        "method.clamp=${overwrite}",
    ],
)
def test_what_equals_the_default_wins_over_a_preset(override: str):
    assert sourced(FUSIONBENCH, "clamp").value is False
    assert sourced([*FUSIONBENCH, "overwrite=true", override], "clamp") == Sourced(True, "given")
    assert sourced([*FUSIONBENCH, "overwrite=true", override], "lr").source.startswith("preset: FusionBench")


@pytest.mark.parametrize("value", ["0.3", "'0.3'", "{dtd: 0.3, sun397: 0.4}"])
def test_a_mapping_is_given_as_a_number_is(value: str):
    line = ["method=tall_masks", "model=vit_b32", "tasks=[dtd,sun397]", f"method.threshold={value}"]
    if value.startswith("'"):
        with pytest.raises(InputError, match="threshold must be a finite number"):
            plan_of(line)
        return
    assert sourced(line, "threshold").source == "given"


def test_what_is_not_given_is_a_preset_or_a_default():
    assert sourced(["method=ties_merging"], "keep") == Sourced(0.2, "default")
    assert sourced(["method=ties_merging", "method.keep=0.2"], "keep") == Sourced(0.2, "given")
    assert sourced(["method=ties_merging", "method.keep=0.3", "method.keep=0.2"], "keep") == Sourced(0.2, "given")
    assert sourced(["method=surgery_v2", "model=vit_l14"], "rank").value == 4  # the file of the method writes out 16
    assert sourced(["method=surgery_v2", "model=vit_l14", "method.rank=16"], "rank") == Sourced(16, "given")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method.adaptation.steps=400"], Sourced(400, "given")),
        (["steps=400"], Sourced(400, "given")),
        (["method.adaptation={steps: 7}"], Sourced(7, "given")),
        (["steps=5", "method.adaptation.steps=6"], Sourced(6, "given")),
        (["method.adaptation.steps=6", "steps=5"], Sourced(5, "given")),
        (["method.adaptation.steps=6", "steps=null"], Sourced(6, "given")),
        (["steps=5", "steps=6"], Sourced(6, "given")),
    ],
)
def test_steps_are_given_by_two_keys(overrides: list[str], expected: Sourced):
    assert sourced(["method=adarank", *overrides], "steps") == expected


def test_a_setting_that_is_taken_back_is_its_preset():
    expected = sourced(["method=adarank"], "steps")
    assert expected.source.startswith("preset")
    for overrides in (["method.adaptation.steps=6", "~method.adaptation.steps"], ["steps=5", "steps=null"]):
        assert sourced(["method=adarank", *overrides], "steps") == expected


def test_null_is_a_value_where_it_is_one():
    line = ["method=metamerging", "method.adapter_steps=null"]
    assert sourced(line[:1], "adapter_steps").source.startswith("preset")
    assert sourced(line, "adapter_steps") == Sourced(None, "given")
    assert sourced(["method=surgery", "method.adaptation.base_steps=null"], "base_steps") == Sourced(None, "given")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["method=cart", "method.scaling=null"], r"method 'cart': scaling must be a finite number in .*, got null"),
        (["method=adarank", "method.adaptation.steps=null"], "method.adaptation.steps must be an integer of at least 0, got null"),
        (["method=regmean", "method.statistics.order=null"], "method.statistics.order must be one of stored, shuffled, got null"),
    ],
)
def test_null_is_refused_where_it_is_none(line: list[str], said: str):
    with pytest.raises(InputError, match=said):
        plan_of(line)


def test_a_preset_beyond_the_steps_falls_away_and_what_is_given_does_not():
    line = ["method=metamerging", "model=vit_b32", "steps=100"]
    assert sourced(line, "adapter_steps") == Sourced(None, "default")
    assert sourced([*line, "method.adapter_steps=156"], "adapter_steps") == Sourced(156, "given")


def test_an_id_that_is_given_leaves_the_values_of_other_files_behind():
    assert plan_of(["method.id=tsv_m"]).hyperparameters == plan_of(["method=tsv_m"]).hyperparameters
    assert sourced(["method.id=tsv_m", "method.scaling=0.3"], "scaling") == Sourced(0.3, "given")
    with pytest.raises(InputError, match="method 'magmax' has no hyperparameter 'keep'"):
        plan_of(["++method={id: magmax, keep: 0.1}"])


@pytest.mark.parametrize("line", [["~method"], ["~method.id"]])
def test_a_method_that_is_taken_away_is_missed(line: list[str]):
    with pytest.raises(InputError, match="write method=NAME"):
        plan_of(line)


def test_a_base_is_given_its_steps_and_nothing_else():
    base = plan.base_of(plan_of(["method=surgery", "method.base=adamerging_layerwise", "method.adaptation.base_steps=400"]))
    assert base is not None
    assert base.settings["steps"] == Sourced(400, "given")
    assert {found.source for found in base.hyperparameters.values()} == {"default"}


def test_rows_and_the_command_line_of_an_experiment_give():
    rows = {
        "plain": ("method=adamerging_layerwise",), "row": ("method=adamerging_layerwise", "method.clamp=true"),
        "free": ("method=ties_merging", "preset=null"),
    }
    read = experiment.Experiment(name="one", title="", question="", seeds=(0, 1), defaults=("preset=fusionbench",), rows=rows)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        found = experiment.plans(read, ["++seed=5", "experiment=one", "steps=1000"])
    assert [(name, run.seed) for name, row in found.items() for run in row] == [("plain", 5), ("row", 5), ("free", 5)]
    assert found["plain"][0].hyperparameters["clamp"].source.startswith("preset")
    assert found["row"][0].hyperparameters["clamp"] == Sourced(True, "given")
    assert found["row"][0].settings["steps"] == Sourced(1000, "given")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        free = {"free": rows["plain"]}
        found = experiment.plans(experiment.Experiment(
            name="one", title="", question="", seeds=(0,), defaults=("method.lr=0.1",), rows=free
        ), ["method.lr=0.001"])
    assert found["free"][0].hyperparameters["lr"] == Sourced(0.001, "given")


def test_without_overrides_what_differs_from_the_default_is_given():
    config = composed(["method=ties_merging", "method.keep=0.2", "method.scaling=0.5"])
    found = plan.resolve(config).hyperparameters
    assert (found["keep"], found["scaling"]) == (Sourced(0.2, "default"), Sourced(0.5, "given"))
    assert found["virtual_zeros"] == Sourced(0, "default")


@pytest.mark.parametrize("id", [id for id in registry.names() if not id.startswith("adarank")])
def test_giving_every_default_changes_no_value(id: str):
    defaults = {name: value for name, value in registry.get(id).defaults.items() if not isinstance(value, str)}
    line = [f"method={id}", *(f"++method.{name}={'null' if value is None else str(value)}" for name, value in defaults.items())]
    given_all = plan_of(line)
    assert all(given_all.hyperparameters[name] == Sourced(value, "given") for name, value in defaults.items())
    assert {name: type(given_all.values[name]) for name in defaults} == {name: type(value) for name, value in defaults.items()}


def test_settings_do_not_import_torch_or_what_runs():
    code = "import sys, fusionbench_lite.planning.plan; print({'torch', 'fusionbench_lite.running'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
