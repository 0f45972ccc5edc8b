"""What runs write of metrics other than accuracy: cells, samples, keys, the course, and what a resumed run finds."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fusionbench_lite.adaptation.engine.evaluations import Evaluations
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation import metrics
from fusionbench_lite.evaluation.measures import LOWER, Measure
from fusionbench_lite.evaluation.results import TaskResult
from fusionbench_lite.running import course, recording
from fusionbench_lite.tables import records
from tests.support.record_factory import result

TASKS = ("sst2", "cola", "stsb", "qa")
WORDS = np.array(["yes", "no"])


def evaluation(part: float = 0.8) -> dict[str, TaskResult]:
    """A task of every kind of metric, right about `part` of the time."""
    numbers = np.random.default_rng(0)
    labels = numbers.integers(0, 2, 60)
    predictions = np.where(numbers.random(60) < part, labels, 1 - labels)
    scores = numbers.normal(size=60)
    return {
        "sst2": TaskResult(predictions, labels), "cola": TaskResult(predictions, labels, "matthews"),
        "stsb": TaskResult(part * scores + numbers.normal(size=60), scores, "spearman"),
        "qa": TaskResult(WORDS[predictions], WORDS[labels], "exact_match"),
    }


def test_a_record_says_what_its_numbers_are(tmp_path):
    found = evaluation()
    chosen = {"last": recording.Selection(0, False, found)}
    cells = recording._selection(chosen["last"])
    assert set(cells["per_task"]["sst2"]) == {"metric", "value", "correct", "examples", "interval"}, "as version 0.4 wrote it"
    assert {"label": "Matthews correlation", "unit": "percent", "direction": "higher"}.items() <= cells["per_task"]["cola"].items()
    assert [task for task, cell in cells["per_task"].items() if "correct" in cell] == ["sst2", "qa"]
    assert cells["average"] == pytest.approx(np.mean([result.value for result in found.values()]))
    arrays = recording.samples(chosen)
    assert {name for name in arrays if name.endswith("labels")} == {"last/cola/labels", "last/stsb/labels"}
    assert {name for name in arrays if name.endswith("correct")} == {"last/sst2/correct", "last/qa/correct"}
    data = result("tsv_m", {"last": cells})
    records.write(tmp_path, data, arrays)
    record = records.find(tmp_path, data["key"])
    assert record.measures()["stsb"] == metrics.get("spearman").measure
    assert set(record.correct("last")) == {"sst2", "qa"}
    for task, (predictions, labels) in record.answers("last").items():
        assert TaskResult(predictions, labels, found[task].metric).value == found[task].value


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("cola", {"value": 0.5}, "has matthews"), ("cola", {"direction": "up"}, "direction is 'up'"),
        ("cola", {"label": None}, "label is None"), ("qa", {"correct": None}, "is no exact_match"),
        ("stsb", {"metric": "f1"}, "F1 needs predictions that are classes"),
    ],
)
def test_a_record_that_contradicts_itself_is_none(tmp_path, task, change, message):
    chosen = {"last": recording.Selection(0, False, evaluation())}
    cells = recording._selection(chosen["last"])
    cell = cells["per_task"][task]
    before = cell["value"]
    cell |= change
    cell["interval"] = [-1.0, 1.0]
    cells["average"] += (cell["value"] - before) / len(TASKS)
    with pytest.raises(InputError, match=message):
        records.write(tmp_path, result("tsv_m", {"last": cells}), recording.samples(chosen))


def test_labels_must_be_there(tmp_path):
    chosen = {"last": recording.Selection(0, False, evaluation())}
    arrays = recording.samples(chosen)
    del arrays["last/cola/labels"]
    with pytest.raises(InputError, match=r"samples\.npz lacks last/cola/labels"):
        records.write(tmp_path, result("tsv_m", {"last": recording._selection(chosen["last"])}), arrays)


def module(step: int = 0) -> SimpleNamespace:
    """What an evaluation and a history want of a module of an adaptation."""
    procedure = SimpleNamespace(refresh=lambda step: None, learned=dict)
    history = SimpleNamespace(losses=[1.0] * step, task_losses={task: [0.25] * step for task in TASKS})
    return SimpleNamespace(procedure=procedure, completed=step, tasks=TASKS, history=history)


def evaluated(*parts: float) -> Evaluations:
    kept = Evaluations(lambda procedure, tasks: evaluation(parts[len(kept.values)]), 1, len(parts) - 1)
    for step in range(len(parts)):
        kept._evaluate(module(step))
    return kept


def test_the_course_names_its_metrics(tmp_path):
    kept = evaluated(0.6, 0.9, 0.7)
    assert kept.chosen == {"last": 2, "best_test": 1}
    course._write_history(tmp_path / "history.csv", module(2), kept)
    with (tmp_path / "history.csv").open() as file:
        header, *lines = csv.reader(file)
    assert header[-6:] == ["average", "accuracy/sst2", "matthews/cola", "spearman/stsb", "exact_match/qa", "held_out"]
    assert float(lines[1][header.index("matthews/cola")]) == evaluation(0.9)["cola"].value
    course._write_evaluations(tmp_path / "evaluations.npz", kept)
    with np.load(tmp_path / "evaluations.npz") as file:
        for task, found in evaluation(0.9).items():
            assert np.array_equal(file[f"1/{task}"], found.predictions)
        assert file["1/sst2"].dtype == np.uint8


def test_a_resumed_run_finds_its_evaluations(tmp_path):
    kept = evaluated(0.6, 0.9)
    torch.save(kept.state_dict(), tmp_path / "state.pt")
    again = Evaluations(lambda procedure, tasks: {}, 1, 1)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.chosen == kept.chosen
    for task, found in evaluation(0.9).items():
        restored = again.results(1)[task]
        assert (restored.value, restored.interval, restored.metric) == (found.value, found.interval, found.metric)
    with pytest.raises(InputError, match="begun by version 0.4"):
        again.load_state_dict({"accuracies": {}, "predictions": {}})


def test_metrics_that_have_no_average_leave_it_blank(tmp_path, monkeypatch):
    monkeypatch.setitem(metrics.METRICS, "matthews", metrics.Metric(Measure("matthews", "error", direction=LOWER)))
    kept = evaluated(0.6, 0.9, 0.7)
    assert kept.chosen == {"last": 2}
    assert [entry["average"] for entry in course.evaluations(kept)] == [None] * 3
    course._write_history(tmp_path / "history.csv", module(2), kept)
    assert ",,0." in (tmp_path / "history.csv").read_text().splitlines()[1]
    assert recording._selection(recording.Selection(2, False, evaluation()))["average"] is None
