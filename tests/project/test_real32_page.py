"""The page of the real data sets: its claims are about rows that there are, and its figures are the records'."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from fusionbench_lite.running import experiment as experiments
from fusionbench_lite.tables.rows import Row, Rows, write_rows
from tests.conftest import ROOT
from tests.support.record_factory import store

NAME = "mini/real32"
TASKS = ("cifar10", "mnist", "gtsrb", "dtd10")
VALUES = {
    "Pretrained": 0.4, "Individual": 0.7, "Task arithmetic": 0.6, "TSV-M": 0.65, "Layer-wise AdaMerging": 0.55,
    "Weight averaging": 0.5,
}
"""Accuracy of the rows that have records."""


@pytest.fixture(autouse=True)
def pages(monkeypatch):
    """Make docs/ importable, which is no package, and hand out its generator and this page's."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import generate
    import real32_page

    return generate, real32_page


@pytest.fixture
def results(tmp_path):
    """Records of three seeds of a few rows."""
    rows = []
    for name, overrides in experiments.lines(experiments.read(NAME), ["seed=0"]).items():
        method, keys = next(one for one in overrides[0] if one.startswith("method=")).removeprefix("method="), ("0" * 16,)
        if name in VALUES:
            adapted = {"best": dict.fromkeys(TASKS, 0.8)} if "AdaMerging" in name else {}
            keys = tuple(
                store(tmp_path / "results", method, dict.fromkeys(TASKS, VALUES[name]), seed=seed, size=2000, row=name, **adapted)
                for seed in range(3)
            )
        rows.append(Row(name, method, keys))
    for path in (tmp_path / "results" / "records").glob("*/result.json"):  # every model is surer than it is right
        data = json.loads(path.read_text())
        for selection in data["selections"].values():
            for task, cell in selection["per_task"].items():
                cell["confidence"] = cell["value"] + (0.2 if task == "dtd10" else 0.1)
        path.write_text(json.dumps(data))
    write_rows(tmp_path / "results", Rows(NAME, "Real", tuple(rows)))
    return tmp_path / "results"


def test_claims_are_about_rows_of_the_experiment(pages):
    names = set(experiments.lines(experiments.read(NAME), ["seed=0"]))
    page = pages[1]
    asked = [*page.CLAIMS, *((*pair, "") for pair in page.ADAPTED), *page.BUILT_FOR]
    assert {row for first, second, _ in asked for row in (first, second)} <= names


def test_the_page_says_what_the_records_say(pages, results, tmp_path):
    pages[0].main(["--results-dir", str(results), "--out", str(tmp_path / "docs"), "--experiment", "mini/none"])
    text = (tmp_path / "docs" / "real32.md").read_text()
    assert (tmp_path / "docs" / "real32_results.png").is_file()
    rows = experiments.lines(experiments.read(NAME), ["seed=0"])
    assert f"{len(VALUES)} of the {len(rows)} rows of the experiment have been run" in text
    assert "| Individual | Pretrained | +30.00 |" in text
    assert "+30.0, +30.0, +30.0 | holds |" in text
    assert "| TSV-M | Task arithmetic | +5.00 |" in text
    assert "| Layer-wise AdaMerging | Task arithmetic | -5.0 | -5.0 | -5.0 | -5.0 | -5.00 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| Task-wise AdaMerging | Task arithmetic |"))
    assert line.endswith("no records |")
    assert "| cifar10 | 2000 | 40.0 | 50.0 | 70.0 | 80.0 | +10.0 |" in text
    assert "| dtd10 | 2000 | 40.0 | 60.0 | 70.0 | 90.0 | +20.0 |" in text
    assert "Over these 4 cells the correlation of the gain with" in text


def test_why_adapting_helps_is_computed(pages, monkeypatch):
    """Gains of -3 where the merge was 10 points surer than right, +1 where it was as sure."""
    cells = {"a": (0.9, 0.9, 1), "b": (0.8, 0.8, 1), "c": (0.4, 0.5, -3), "d": (0.3, 0.4, -3)}
    record = SimpleNamespace(data={"selections": {"last": {"per_task": {
        task: {"value": value, "confidence": confidence} for task, (value, confidence, _) in cells.items()
    }}}})
    compared = {("new", "old"): SimpleNamespace(per_task={task: (gain / 100, 0, 0) for task, (_, _, gain) in cells.items()})}
    text = pages[1]._why(compared, list(cells), {"old": [record]})
    assert "surer than right it was -1.00." in text
    assert "less accurate gains -3.00 points on average, the other half +1.00" in text
