"""Sweeps of experiments: which runs are sent, what is said of those without a record, and what the sending process imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning import config as configuration
from fusionbench_lite.planning.experiments.runs import write_note
from fusionbench_lite.running import job, sent, sweep, table
from fusionbench_lite.running.job import Lost
from fusionbench_lite.tables import records
from tests.running.test_run import SMALL
from tests.support.commands import ROOT

SWEEP = ("-m", "experiment=mini/first_look", "steps=1", *SMALL)
KEY = "0123456789abcdef"


def test_a_job_for_every_run_that_is_missing(command, tmp_path):
    results = tmp_path / "results"
    done = command(*SWEEP)
    assert done.returncode == 0, done.stderr
    assert "mini/first_look: 5 runs, 0 with a record, 5 to do" in done.stdout
    assert "Layer-wise AdaMerging" in done.stdout
    notes = sorted((results / "runs").glob("*.json"))
    assert {json.loads(note.read_text())["key"] for note in notes} == {record.key for record in records.read_all(results)}
    notes[0].unlink()
    again = command(*SWEEP)
    assert "5 runs, 4 with a record, 1 to do" in again.stdout
    assert notes[0].exists()


def test_a_plain_run_of_an_experiment_leaves_what_a_sweep_looks_for(command):
    line = ("experiment=mini/first_look", "steps=1", *SMALL)
    assert command(*line).returncode == 0
    assert "5 runs, 5 with a record, 0 to do" in command("-m", *line).stdout


class Launcher:
    """A launcher whose jobs leave their notes and nothing else; `fails` maps a method to what its job raises, None for nothing."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.sizes: list[tuple[int, int]] = []
        self.fails: dict[str, Exception | None] = {}

    def launch(self, job_overrides, initial_job_idx):
        self.sizes.append((len(job_overrides), initial_job_idx))
        return [self._job(list(overrides)) for overrides in job_overrides]

    def _job(self, overrides: list[str]) -> JobReturn:
        self.sent.append(overrides)
        config = compose("config", overrides=overrides)
        run = next(run for run in sweep.runs(config, overrides) if run.id == config.run)
        method, done = run.values["method"], JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
        if method not in self.fails:
            write_note(Path(config.results_dir), run, KEY)
        elif (error := self.fails[method]) is not None:
            done.status, done.return_value = JobStatus.FAILED, error
        return done


@pytest.fixture
def launcher() -> Launcher:
    return Launcher()


@pytest.fixture
def send(tmp_path, monkeypatch, launcher):
    """Sends the lines of a sweep, of a small experiment where they name none, and returns the tables that are written."""
    written: list[str] = []
    monkeypatch.setattr(sweep.records, "find", lambda results_dir, key: key == KEY or None)
    monkeypatch.setattr(sweep, "finish", lambda config, overrides: written.append(f"{config.experiment} {config.select.name}"))
    monkeypatch.setattr(sweep, "SETTLING", 0.0)
    configuration.register()
    place = f"results_dir={tmp_path}/r"

    def send(*lines: str, at_once: int | None = None) -> list[str]:
        written.clear()
        hydra = compose("config", overrides=[place], return_hydra_config=True).hydra
        hydra.sweep.dir = str(tmp_path / "sweep")
        sending = sweep.Sending(launcher=launcher, hydra=hydra, at_once=at_once)
        small = "experiment=mini/first_look"
        sweep.main([[*([] if "experiment=" in line else [small]), place, *line.split()] for line in lines], sending)
        return list(written)

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield send


def test_what_is_there_is_not_sent_again_unless_that_is_asked_for(send, launcher, capsys):
    assert send("steps=1") == ["mini/first_look last"]
    assert [overrides[-1].startswith("run=") for overrides in launcher.sent] == [True] * 5
    assert "5 runs, 0 with a record, 5 to do" in capsys.readouterr().out
    assert send("steps=1") == ["mini/first_look last"]
    assert "5 runs, 5 with a record, 0 to do" in capsys.readouterr().out
    assert len(launcher.sent) == 5
    send("steps=1 overwrite=true")
    assert len(launcher.sent) == 10


def test_lines_share_their_runs(send, launcher, capsys):
    assert send("steps=1", "steps=1 select=best_test") == ["mini/first_look last", "mini/first_look best_test"]
    assert "sending 5 jobs" in capsys.readouterr().out
    assert len(launcher.sent) == len({overrides[-1] for overrides in launcher.sent}) == 5


def test_all_tables_share_their_runs(send, launcher, monkeypatch, capsys):
    names = ["adarank/table_4", "adamerging/text_2"]
    monkeypatch.setattr(sweep.experiments, "names", lambda: names)
    assert send("experiment=all scale=mini seed=0") == [f"{name} last" for name in names]
    said = capsys.readouterr().out
    each = [int(re.search(rf"^{name}: \d+ runs, 0 with a record, (\d+) to do$", said, flags=re.MULTILINE)[1]) for name in names]
    assert max(each) <= len(launcher.sent) < sum(each)
    assert not any("experiment=all" in overrides for overrides in launcher.sent)


def test_runs_without_a_record_are_named_whatever_their_jobs_say(send, launcher, capsys):
    launcher.fails = {"tsv_m": RuntimeError("the node is gone\nand more"), "individual": None}
    with pytest.raises(Lost) as lost:
        send("steps=1")
    text = str(lost.value)
    assert text.startswith("2 of 5 runs have no record though their jobs ended:\n  run=")
    assert "method=tsv_m" in text
    assert "\n    RuntimeError: the node is gone and more\n" in text
    assert "method=individual" in text
    assert text.endswith("the same command sends these runs alone")
    launcher.fails = {}
    assert send("steps=1") == ["mini/first_look last"]
    assert "5 runs, 3 with a record, 2 to do" in capsys.readouterr().out


def test_a_launcher_that_gives_up_is_quoted(send, launcher, monkeypatch):
    def gives_up(job_overrides, initial_job_idx):
        raise RuntimeError("Job 3_1 has not produced any output")

    monkeypatch.setattr(launcher, "launch", gives_up)
    with pytest.raises(Lost, match="5 of 5 runs have no record") as lost:
        send("steps=1")
    assert "the launcher says: RuntimeError: Job 3_1 has not produced any output" in str(lost.value)


def test_runs_that_are_refused_are_not_sent(send, launcher, capsys):
    with pytest.raises(InputError, match="runs were refused: .*'individual' has no model for a task without an expert"):
        send("steps=1 checkpoints.experts=2")
    assert launcher.sent
    assert not [overrides for overrides in launcher.sent if "method=individual" in overrides]
    assert "refused" in capsys.readouterr().out


def test_at_most_so_many_at_once(send, launcher):
    send("steps=1", at_once=2)
    assert launcher.sizes == [(2, 0), (2, 2), (1, 4)]


def test_lost_runs_are_status_1(command, monkeypatch):
    monkeypatch.setattr(table, "execute", lambda *arguments: None)
    monkeypatch.setattr(sweep, "SETTLING", 0.0)
    done = command(*SWEEP)
    assert done.returncode == 1
    assert "fusionbench_lite: 5 of 5 runs have no record though their jobs ended:" in done.stderr


def test_a_published_table_and_one_run_of_it_by_hand(command, monkeypatch, tmp_path):
    monkeypatch.setattr(table, "execute", lambda run, plan, place, count, console: write_note(plan.results_dir, run, KEY))
    monkeypatch.setattr(sweep.records, "find", lambda results_dir, key: key == KEY or None)
    monkeypatch.setattr(sweep, "finish", lambda config, overrides: print("finished", config.experiment))
    line = ("experiment=doge/table_7", "scale=mini", "seed=0")
    done = command("-m", *line)
    assert done.returncode == 0, done.stderr
    assert "doge/table_7: 5 runs, 0 with a record, 5 to do" in done.stdout
    assert "finished doge/table_7" in done.stdout
    note = next((tmp_path / "results" / "runs").glob("*.json"))
    note.unlink()
    assert command(*line, f"run={note.stem}").returncode == 0
    assert note.exists()
    wrong = command(*line, f"run={KEY}")
    assert wrong.returncode == 2
    assert f"experiment doge/table_7 has no run {KEY!r} with these settings" in wrong.stderr


def test_a_run_without_an_experiment(command):
    done = command("run=0123456789abcdef")
    assert done.returncode == 2
    assert "run=0123456789abcdef is one run of an experiment: add experiment=NAME" in done.stderr


def test_what_sends_jobs_does_not_import_torch(tmp_path):
    """Launchers aside: on the machine that sends them there may be neither a GPU nor much memory."""
    code = (
        "import sys\nfrom hydra import compose, initialize_config_dir\nfrom fusionbench_lite.running import application, sweep\n"
        "from fusionbench_lite.paths import config_dir\n"
        "with initialize_config_dir(str(config_dir()), version_base='1.3'):\n"
        f" for line in (['experiment=mini/first_look', 'results_dir={tmp_path}'],"
        f" ['experiment=doge/table_7', 'scale=mini', 'results_dir={tmp_path}']):\n"
        "  config = compose('config', overrides=line)\n  every = sweep.runs(config, line)\n"
        "  assert [make() for make in every.values()] and sweep.missing_runs(config, every) == list(every)\n"
        "  if config.experiment == 'doge/table_7': sweep.finish(config, line)\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Jobs ----------------------------------------------------------------------------------------------------------------


def _composed(*overrides: str):
    configuration.register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


def test_the_values_of_slurm_are_those_that_are_safe():
    """More than ten minutes, for submitit takes a signal before that for the time limit; USR2 after that margin, not before."""
    launcher = _composed("hydra/launcher=slurm").hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.timeout_min > 50
    assert 120 < launcher.signal_delay_s < 600
    assert launcher.max_num_timeout > 0
    assert (launcher.nodes, launcher.tasks_per_node) == (1, 1)
    assert None not in (launcher.mem_gb, launcher.cpus_per_task, launcher.gpus_per_node)


@pytest.mark.parametrize(("override", "said"), [
    ("hydra.launcher.tasks_per_node=2", "hydra.launcher.tasks_per_node=2: a job is one process"),
    ("hydra.launcher.nodes=4", "hydra.launcher.nodes=4: a job is one process"),
    ("trainer.devices=2", "trainer.devices=2: a job of this launcher is one process"),
])
def test_jobs_of_several_processes_are_refused(override, said):
    config = _composed("hydra/launcher=slurm", override)
    with pytest.raises(InputError, match=said):
        job.check_processes(config, config.hydra)


def test_the_processors_of_a_job_become_threads(monkeypatch):
    config = _composed()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    with job.in_a_job(config, config.hydra):
        assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with job.in_a_job(config, config.hydra):
        assert os.environ["OMP_NUM_THREADS"] == "1"  # a user's own number


def test_a_job_says_in_its_log_why_it_failed(monkeypatch, capsys):
    config = _composed()
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(RuntimeError):
        with job.in_a_job(config, config.hydra):
            raise RuntimeError("out of paper")
    assert "RuntimeError: out of paper" in capsys.readouterr().err
    with pytest.raises(InputError):
        with job.in_a_job(config, config.hydra):
            raise InputError("no such\nfolder")
    assert capsys.readouterr().err == "fusionbench_lite: no such folder\n"


# Jobs that were sent -------------------------------------------------------------------------------------------------


@pytest.fixture
def squeue(tmp_path, monkeypatch) -> Path:
    """A squeue that says what stands in a file, and fails without the file."""
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/queue\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    for job_id in ("7_0", "7_1"):
        folder = tmp_path / ".submitit" / job_id
        folder.mkdir(parents=True)
        (folder / f"{job_id}_submitted.pkl").touch()
    return tmp_path / "queue"


def test_jobs_are_waited_for_until_they_have_left_the_queue(squeue, tmp_path, monkeypatch, caplog):
    states = iter(["6\n7\n", None, "7\n", "6\n"])
    asked = []

    def passes(seconds):
        asked.append(seconds)
        text = next(states)
        squeue.unlink(missing_ok=True) if text is None else squeue.write_text(text)

    passes(0.0)
    monkeypatch.setattr(sent, "time", SimpleNamespace(sleep=passes))
    sent.wait({"_target_": "x.SlurmLauncher", "submitit_folder": f"{tmp_path}/.submitit/%j"})
    assert len(asked) == 4
    assert "squeue does not answer" in caplog.text


def test_children_are_waited_for(tmp_path, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    folder = tmp_path / ".submitit" / str(child.pid)
    folder.mkdir(parents=True)
    (folder / f"{child.pid}_submitted.pkl").touch()
    monkeypatch.setattr(sent, "PAUSE", 0.05)
    sent.wait({"_target_": "x.LocalLauncher", "submitit_folder": f"{tmp_path}/.submitit/%j"})
    child.wait()
