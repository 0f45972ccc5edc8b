"""The page of MiniLM: its experiment composes, its claims are about rows that there are, and its figures are the records'."""

from __future__ import annotations

import re

import pytest
from hydra import initialize_config_dir

from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning import config
from fusionbench_lite.planning import plan as planning
from fusionbench_lite.running import experiment as experiments
from fusionbench_lite.tables.rows import Row, Rows, write_rows
from tests.conftest import ROOT
from tests.support.record_factory import store

config.register()

NAME = "mini/minilm"
TASKS = ("sst2", "cola", "mrpc", "rte")
VALUES = {"Pretrained": 0.5, "Individual": 0.9, "Task arithmetic": 0.7, "TSV-M": 0.6, "Layer-wise AdaMerging": 0.7}
"""Accuracy of the rows that have records."""


@pytest.fixture(autouse=True)
def pages(monkeypatch):
    """Make docs/ importable, which is no package, and hand out its generator and this page's."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import generate
    import minilm_page

    return generate, minilm_page


@pytest.fixture
def results(tmp_path):
    """Records of three seeds of a few rows."""
    rows = []
    for name, overrides in experiments.read(NAME).rows.items():
        method, keys = overrides[0].removeprefix("method="), ("0" * 16,)
        if name in VALUES:
            adapted = {"best": dict.fromkeys(TASKS, 0.8)} if "AdaMerging" in name else {}
            budget = {"steps": {"value": 100, "source": "x"}, "batch_size": {"value": 4, "source": "x"}} if adapted else {}
            keys = tuple(
                store(
                    tmp_path / "results", method, dict.fromkeys(TASKS, VALUES[name]), seed=seed, size=200, row=name, model="minilm",
                    caveats=["rte: 3 texts are cut"], **({"hyperparameters": budget} if budget else {}), **adapted,
                )
                for seed in range(3)
            )
        rows.append(Row(name, method, keys))
    write_rows(tmp_path / "results", Rows(NAME, "MiniLM", tuple(rows)))
    return tmp_path / "results"


def test_every_row_composes_with_the_budget_of_this_model(tmp_path):
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        resolved = experiments.plans(experiments.read(NAME), [f"data_dir={tmp_path}", "seed=0"])
    adapting = {name: plans[0] for name, plans in resolved.items() if "steps" in plans[0].settings}
    assert len(resolved) > 50
    assert len(adapting) > 15
    for name, plan in adapting.items():
        if "urgery" not in name or name == "SurgeryV2":  # surgeries on known features have the published budget
            assert (plan.setting("steps"), plan.setting("batch_size")) == (100, 4), name
    without = {plans[0].method for plans in resolved.values()}
    assert set(planning.registry.names()) - without == {"traditional_mtl", "wemoe", "twin_merging", "map"}  # the file says why


def test_claims_are_about_rows_of_the_experiment(pages):
    names = set(experiments.read(NAME).rows)
    assert {row for first, second, _ in pages[1].CLAIMS for row in (first, second)} <= names


def test_the_page_says_what_the_records_say(pages, results, tmp_path, capsys):
    pages[0].main(["--results-dir", str(results), "--out", str(tmp_path / "docs"), "--experiment", "mini/none"])
    text = (tmp_path / "docs" / "minilm.md").read_text()
    assert (tmp_path / "docs" / "minilm_results.png").is_file()
    assert "first evidence on real pretrained weights" in " ".join(text.split())
    assert "100 steps of 4" in " ".join(text.split())
    assert "rte: 3 texts are cut" in text
    assert re.search(r"^\| sst2 \| 200 \| \d+\.\d \| 50\.0 \| 90\.0 \|$", text, re.MULTILINE)
    assert re.search(r"^\| Individual \| Task arithmetic \| every table \| \+20\.00 \| .* \| holds \|$", text, re.MULTILINE)
    assert re.search(r"^\| TSV-M \| Task arithmetic \| .* \| -10\.00 \| .* \| \*\*does not hold\*\* \|$", text, re.MULTILINE)
    assert "| AdaRank (TA) | Layer-wise AdaMerging | AdaRank, Tables 17 and 18 | | | no records |" in text
    assert "do not hold: TSV-M over Task arithmetic." in " ".join(text.split())
