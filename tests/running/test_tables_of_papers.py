"""The runs of the fifty tables: each can be made, of the experts and by the rule of the number that it answers."""

from __future__ import annotations

import functools

import pytest
from hydra import initialize_config_dir

from fusionbench_lite import registry
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning import config, experiments
from fusionbench_lite.running import table
from fusionbench_lite.tables.cells.build import answered

config.register()
NOT_HERE = ("doge/table_10", "doge/text_1")
"""Tables of a model that is merged and judged by other commands (docs/large_models.md)."""
ON_TOP = {"adarank/table_8": "adapters whose own last step counts, on models that test labels picked"}


@pytest.fixture(scope="module", autouse=True)
def composing():
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield


@functools.cache
def planned(run):
    return table.planned(run, [])


@pytest.mark.parametrize("name", [name for name in experiments.names() if name not in NOT_HERE])
def test_every_cell_runs_what_its_number_was_measured_on(name):
    experiment = experiments.read(name)
    specs = experiments.cells(experiment)
    by_place = {(spec.row, spec.column): spec for spec in specs}
    for place, number in answered(experiment, specs).items():
        spec = by_place[place]
        if not spec.statistic.needs_run:
            continue
        plans = [planned(run) for group in spec.runs for run in group]
        assert {plan.wanted.family for plan in plans} == {number.family}, place
        adaptive = all(registry.get(plan.method).adaptive for plan in plans)
        if adaptive and spec.statistic.is_score and number.selection != "unstated" and name not in ON_TOP:
            assert spec.select == number.selection, place


@pytest.mark.parametrize("name", NOT_HERE)
def test_a_model_that_is_no_run_here_is_refused_in_one_line(name):
    for run in experiments.distinct(experiments.cells(experiments.read(name))):
        with pytest.raises(InputError) as refused:
            planned(run)
        assert "\n" not in str(refused.value)


def test_refusals_are_one_line_with_each_reason_once():
    refused = {f"method=m{number}": "no network" for number in range(9)} | {"method=x": "no such model"}
    assert table.by_reason(refused) == "no network (9 runs, the first of them method=m0); no such model (method=x)"
    many = table.by_reason({f"method=m{number}": f"reason {number}" for number in range(9)})
    assert many.endswith("reason 2 (method=m2); and for 6 other reasons")
