"""Tracked runs: one per record, with what it is, its course and its results; what is missing is said before any work."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging

import pytest

from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.experiments import Line
from fusionbench_lite.running import adapting, table, tracking
from fusionbench_lite.running.tracking import Place, Tracker
from fusionbench_lite.tables import records
from tests.running.test_run import SHORT, SMALL
from tests.support.tracked import csv_runs, wandb_run

ADAPTIVE = ("method=adamerging_taskwise", "steps=9", *SMALL, *SHORT)


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    """An environment in which nobody has logged in to wandb."""
    pytest.importorskip("wandb").teardown()
    for name in ("API_KEY", "MODE", "IDENTITY_TOKEN_FILE", "SILENT", "PROJECT", "ENTITY", "DISABLED", "DIR", "BASE_URL"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    yield
    importlib.import_module("wandb").teardown()


@pytest.fixture
def interrupt(monkeypatch):
    """Return what has an adaptation interrupted when it asks for the examples of a step, or no longer, with None."""
    original, steps = adapting.Feed.batches_of, []

    def batches_of(feed, step, tasks):
        if [step] == steps[-1:]:
            raise KeyboardInterrupt
        return original(feed, step, tasks)

    monkeypatch.setattr(adapting.Feed, "batches_of", batches_of)
    return steps.append


def _only_record(folder) -> records.Record:
    (record,) = records.read_all(folder / "results")
    return record


def _results(record) -> dict[str, float]:
    cells = record.data["selections"]["last"]["per_task"]
    return {
        "last/average": record.data["selections"]["last"]["average"], "seconds/total": record.data["seconds"]["total"],
        **{f"last/value/{task}": cell["value"] for task, cell in cells.items()},
        **{f"last/low/{task}": cell["interval"][0] for task, cell in cells.items()},
        **{f"last/high/{task}": cell["interval"][1] for task, cell in cells.items()},
    }


def test_a_run_that_adapts_nothing_is_tracked_once(command, tmp_path):
    line = ("method=task_arithmetic", "method.scaling=0.2", *SMALL, "logger=csv", "seed=3")
    assert command(*line).returncode == 0
    ((name, (configuration, (row,))),) = csv_runs(tmp_path / "results" / "logs" / "csv").items()
    record = _only_record(tmp_path)
    assert name == f"task_arithmetic_vit_mini-digits+signs+land_3-{record.key}"
    assert (configuration["record"], configuration["seed"]) == (record.key, 3)
    assert configuration["hyperparameters"] == {"scaling": 0.2}
    assert configuration["tasks"] == ["digits", "signs", "land"]
    assert configuration["config"] == record.data["config"]
    assert configuration["versions"] == record.data["versions"]
    assert {key: float(row[key]) for key in _results(record)} == pytest.approx(_results(record))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "logs").rglob("*")}
    assert "found in" in command(*line).stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "logs").rglob("*")} == before


def test_a_resumed_run_has_its_whole_course_once(command, tmp_path, interrupt):
    interrupt(6)
    assert command(*ADAPTIVE, "logger=csv").returncode == 1
    (halfway,) = csv_runs(tmp_path / "results" / "logs").values()
    assert "last/average" not in halfway[1][-1]
    interrupt(None)
    assert command(*ADAPTIVE, "logger=csv").returncode == 0
    ((name, (_, (*course, result))),) = csv_runs(tmp_path / "results" / "logs").items()
    record = _only_record(tmp_path)
    assert name.endswith(record.key)
    assert [int(row["step"]) for row in course] == list(range(10))
    assert [int(row["step"]) for row in course if "evaluation/average" in row] == [0, 4, 8, 9]
    assert float(course[-1]["evaluation/average"]) == pytest.approx(record.data["selections"]["last"]["average"])
    assert all(sum(float(row[f"loss/{task}"]) for task in record.tasks) == pytest.approx(float(row["loss"])) for row in course[1:])
    assert all(float(row["coefficients/mean/digits"]) == pytest.approx(0.3, abs=0.05) for row in course)
    assert {key: float(result[key]) for key in _results(record)} == pytest.approx(_results(record))


def test_the_base_of_adapters_has_a_tracked_run_of_its_own(command, tmp_path):
    line = ("method=surgery", "method.base=adamerging_taskwise", "steps=1", "method.adaptation.base_steps=1", *SMALL)
    done = command(*line, "method.adaptation.batch_size=4", "logger=csv", "logger.group=a/../b", "logger.name='w/o \u03b8'")
    assert done.returncode == 0, done.stderr
    runs = csv_runs(tmp_path / "results" / "logs" / "csv")
    assert {configuration["record"] for configuration, _ in runs.values()} == {
        record.key for record in records.read_all(tmp_path / "results")
    }
    assert len(runs) == 2
    assert all(name.startswith("a/b/w_o_-") for name in runs), runs.keys()


def test_wandb_offline_goes_on_with_the_run_of_the_same_key(command, tmp_path, interrupt, no_account):
    line = (*ADAPTIVE, "logger=wandb", "logger.group=paper/table")
    interrupt(6)
    stopped = command(*line, env={"WANDB_MODE": "offline"})
    assert stopped.returncode == 1, stopped.stderr
    interrupt(None)
    done = command(*line, env={"WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stderr
    record = _only_record(tmp_path)
    first, second = sorted(
        map(wandb_run, (tmp_path / "results" / "logs").rglob("run-*.wandb")), key=lambda run: run["exit"], reverse=True
    )
    assert (first["exit"], second["exit"]) == (1, 0)
    for run in (first, second):
        assert run["id"] == run["config"]["record"] == record.key
        assert (run["group"], run["project"]) == ("paper/table", "fusionbench_lite")
        assert run["name"] == "adamerging_taskwise/vit_mini-digits+signs+land/0"
    steps = [[row["trainer/global_step"] for row in run["history"]] for run in (first, second)]
    assert steps == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 9]]  # the checkpoint holds four steps
    assert {key: second["history"][-1][key] for key in _results(record)} == pytest.approx(_results(record))
    assert "wandb:" not in done.stdout + done.stderr


def test_wandb_that_is_disabled_leaves_nothing(command, tmp_path, no_account):
    done = command("method=pretrained", *SMALL, "logger=wandb", env={"WANDB_MODE": "disabled"})
    assert done.returncode == 0, done.stderr
    assert _only_record(tmp_path).method == "pretrained"
    assert not list((tmp_path / "results" / "logs").rglob("*.wandb"))


NO_KEY = "logger=wandb finds no key of Weights & Biases: run wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline"


@pytest.mark.parametrize(("line", "environment", "said"), [
    (["method=pretrained"], {}, NO_KEY),
    (["experiment=mini/demo"], {}, NO_KEY),
    (["experiment=adarank/table_1", "scale=mini"], {"WANDB_MODE": "online"}, NO_KEY),
    (["method=pretrained"], {"WANDB_MODE": "ofline"}, "WANDB_MODE=ofline is not known to wandb: set online, offline or disabled"),
    (["method=pretrained"], {"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid"),
])
def test_a_key_that_is_missing_is_one_line_before_any_work(command, tmp_path, no_account, line, environment, said):
    done = command(*line, "logger=wandb", env=environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("package", "logger"), [("wandb", "wandb"), ("tensorboard", "tensorboard")])
def test_a_package_that_is_missing_is_one_line_before_any_work(command, tmp_path, monkeypatch, package, logger):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name.startswith(package) else find(name, *rest))
    done = command("method=pretrained", f"logger={logger}")
    assert done.returncode == 2
    assert done.stderr == (
        f"fusionbench_lite: logger={logger} needs the package {package}: pip install 'fusionbench_lite[{package}]'\n"
    )
    assert not (tmp_path / "results").exists()


def test_tensorboard(command, tmp_path, interrupt):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupt(6)
    assert command(*ADAPTIVE, "logger=tensorboard").returncode == 1
    interrupt(None)
    assert command(*ADAPTIVE, "logger=tensorboard").returncode == 0
    record = _only_record(tmp_path)
    (path,) = (tmp_path / "results" / "logs" / "tensorboard").rglob("events.*")
    assert path.parent.name.endswith(record.key)
    events = EventAccumulator(str(path.parent)).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 10))
    (average,) = events.Scalars("last/average")
    assert average.value == pytest.approx(record.data["selections"]["last"]["average"])


def test_a_tracker_that_fails_is_left_alone(caplog):
    class Broken:
        told = 0

        def log_metrics(self, *_):
            self.told += 1
            raise OSError(28, "No space left on device")

    broken = Broken()
    tracker = Tracker(broken, where="there")
    with caplog.at_level(logging.WARNING, logger="fusionbench_lite"):
        for step in range(3):
            tracker.step(step, {"loss": 1.0})
        tracker.end(finished=True)
    assert broken.told == 1
    assert caplog.messages == ["tracking in there ends here, the run goes on: OSError: [Errno 28] No space left on device"]


def test_a_logger_that_cannot_begin_is_refused(command, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "logs").write_text("")
    done = command("method=pretrained", *SMALL, "logger=csv")
    assert done.returncode == 2
    assert "no run can be tracked with CSVLogger: " in done.stderr
    assert "Not a directory" in done.stderr
    assert not records.read_all(tmp_path / "results")


def test_steps_that_a_tracked_run_knows_are_not_told_again():
    class Logger:
        def __init__(self):
            self.steps = []

        def log_metrics(self, numbers, step):
            self.steps.append(step)

    tracker = Tracker(Logger(), after=3)
    for step in range(6):
        tracker.step(step, {"loss": 1.0})
    assert tracker.logger.steps == [4, 5]


def test_offline_of_the_logger_counts_where_no_mode_is_set(monkeypatch, no_account):
    assert tracking._wandb_mode(False) == "online"
    assert tracking._wandb_mode(True) == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    importlib.import_module("wandb").teardown()
    assert tracking._wandb_mode(True) == "disabled"


def test_the_place_of_a_base_is_its_row():
    assert Place(experiment="a/b", row="R", column="C").of_base("m") == Place(experiment="a/b", row="R (base m)", column="C")
    assert Place().of_base("m") == Place()


def test_runs_of_a_table_are_named_by_row_and_column(command, tmp_path, monkeypatch):
    """Two rows of a twin: one run for two columns of tasks, and one that a column of its own asks for."""
    line = Line(name="", statistic="average", overrides=("method=task_arithmetic",))
    columns = tuple(Line(name=task, statistic=f"task:{task}", group="Tasks") for task in ("digits", "land"))
    alone = Line(name="half", statistic="average", overrides=("method.scaling=0.5",))
    small = dataclasses.replace(
        experiments.scaled(experiments.read("adarank/table_1"), "mini"), special={}, claims=(), notes=(), defaults=(), seeds=(0, 1),
        rows=(dataclasses.replace(line, name="TA w/o 1"), dataclasses.replace(line, name="TA again")), columns=(*columns, alone),
    )
    monkeypatch.setattr(table, "experiment_of", lambda config: small)
    done = command("experiment=adarank/table_1", "scale=mini", "logger=csv", *SMALL)
    assert done.returncode == 0, done.stderr
    runs = csv_runs(tmp_path / "results" / "logs" / "csv")
    found = {record.key: record for record in records.read_all(tmp_path / "results")}
    assert len(runs) == len(found) == 4
    for name, (configuration, _) in runs.items():
        record = found[configuration["record"]]
        column = "half" if record.data["hyperparameters"]["scaling"]["value"] == 0.5 else "Tasks"
        assert name == f"adarank/table_1-mini/TA_w_o_1_{column}_{record.seeds['seed']}-{record.key}"
        place = (configuration["experiment"], configuration["row"], configuration["column"])
        assert place == ("adarank/table_1-mini", "TA w/o 1", column)
