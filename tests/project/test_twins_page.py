"""The page of the twins, from records made up: what it counts, and what it says of a claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.experiments import runs
from tests.conftest import ROOT
from tests.support.record_factory import TASKS, store


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import twins_page

    return twins_page


def test_without_records_there_is_no_page(page, tmp_path: Path) -> None:
    assert not page.write(tmp_path / "twins.md", str(tmp_path / "results"))
    assert not (tmp_path / "twins.md").exists()


def test_claims_have_their_verdict_and_runs_are_counted(page, tmp_path: Path) -> None:
    """Of three seeds two are there; what another table asks of the same runs is decided too."""
    twin = experiments.scaled(experiments.read("adamerging/table_1"), "mini")
    values = {"Task Arithmetic": 0.6, "Layer-wise AdaMerging": 0.8, "Task-wise AdaMerging": 0.5}
    for spec in experiments.cells(twin):
        for run in spec.all_runs:
            if spec.row in values and run.values["seed"] != "2":
                name, seed = run.values["method"], int(run.values["seed"])
                key = store(tmp_path, name, dict.fromkeys(TASKS, values[spec.row]), seed=seed, size=400)
                runs.write_note(tmp_path, run, key)
    assert page.write(tmp_path / "twins.md", str(tmp_path))
    text = (tmp_path / "twins.md").read_text()
    assert "| Layer-wise AdaMerging | Task Arithmetic | average | +20.00 |" in text
    assert "| Task-wise AdaMerging | Task Arithmetic | average | -10.00 |" in text
    assert " | 2 | holds |" in text
    assert " | 2 | **does not hold** |" in text
    row = next(line for line in text.splitlines() if line.startswith("| [adamerging/table_1](#adamergingtable_1) | 6 | 33 |"))
    assert [part.strip() for part in row.split("|")[4:8]] == ["2", "1", "", "4"]
    assert "6 of " in text
    assert "The paper's text draws no ordering from it." in text
    assert "It needs no run." in text
