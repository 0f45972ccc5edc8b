"""A fine-tuning that was stopped anywhere and started again ends with the same bits; processes share a folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusionbench_lite.finetuning.recipes import FinetuneSettings
from tests.conftest import ROOT
from tests.support import finetuning_job
from tests.support.finetuning_job import EVERY, STEPS, TASKS, quick, stopping, train

JOB = [sys.executable, "-m", "tests.support.finetuning_job"]
EVERYTHING = ["dtd", "dtd,svhn", "dtd originals"]


class Stopped(Exception):
    """What stands for a failure."""


def stop() -> None:
    raise Stopped


def outcome(path: Path) -> tuple[bytes, str, dict]:
    """All that a training leaves, without times."""
    entry = json.loads((path.parent / "manifest.json").read_text())["files"][path.name]
    history = next(path.parent.glob("history-*.csv")).read_text()
    return path.read_bytes(), history, {name: value for name, value in entry.items() if name not in ("seconds", "settings")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return {tasks: outcome(train(tmp_path_factory.mktemp("undisturbed"), tasks)) for tasks in EVERYTHING}


STOPS = {
    "between update and save": [(4, "report"), (12, "report"), (17, "report")],
    "in the middle of a save": [(8, "save"), (16, "save")],
    "while images are read": [(0, "read"), (6, "read"), (22, "read")],
    "at random steps": [(int(step), "report") for step in np.sort(np.random.default_rng(5).integers(1, STEPS, 3))],
    "after the last step": [(STEPS, "report")],
}


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("tasks", EVERYTHING)
def test_stopped_and_started_again(undisturbed, tmp_path, tasks, stops, monkeypatch):
    for step, where in stops:
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            train(tmp_path, tasks, report=stopping(step, where, stop, patch.setattr))
        assert {path.name for path in tmp_path.glob("*.safetensors")} == {"pretrained.safetensors", "heads.safetensors"}
    assert bool(list(tmp_path.glob(".*.ckpt"))) == (stops[-1][0] >= EVERY)
    steps = []
    path = train(tmp_path, tasks, report=lambda status: steps.append(status.step))
    assert outcome(path) == undisturbed[tasks]
    last, where = stops[-1]
    stored = (last - 1 if where != "read" else last) // EVERY * EVERY
    assert steps == list(range(stored + 1, STEPS + 1))  # continued, not begun anew
    assert not [*tmp_path.glob(".*.ckpt"), *tmp_path.glob(".*.tmp")]


@pytest.mark.parametrize("tasks", [pytest.param("dtd", marks=pytest.mark.slow), "dtd originals"])
def test_killed_and_started_again(undisturbed, tmp_path, tasks):
    killed = subprocess.run([*JOB, tmp_path, tasks, "16", "save"], check=False, capture_output=True, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "individual-dtd.safetensors").exists()
    assert list(tmp_path.glob(".*.ckpt"))
    steps = []
    assert outcome(train(tmp_path, tasks, report=lambda status: steps.append(status.step))) == undisturbed[tasks]
    assert steps[0] == 13
    assert not [*tmp_path.glob(".*.ckpt"), *tmp_path.glob(".*.tmp")]  # what the killed process was writing is gone


@pytest.mark.slow
def test_processes_train_into_one_folder_at_once(undisturbed, tmp_path):
    """Two of them the same task: the second waits for the first and finds its file."""
    jobs = [subprocess.Popen([*JOB, tmp_path, task], stderr=subprocess.PIPE, cwd=ROOT) for task in (*TASKS, TASKS[0])]
    for job in jobs:
        assert job.wait() == 0, job.stderr.read().decode()
    assert outcome(tmp_path / "individual-dtd.safetensors")[0] == undisturbed["dtd"][0]
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert {*files} == {"pretrained.safetensors", "heads.safetensors", *(f"individual-{task}.safetensors" for task in TASKS)}
    assert {*load_file(tmp_path / "heads.safetensors")} == {*TASKS}


def test_a_damaged_checkpoint_is_not_used(undisturbed, tmp_path, caplog):
    with pytest.raises(Stopped):
        train(tmp_path, report=stopping(9, "report", stop, setattr))
    (checkpoint,) = tmp_path.glob(".*.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    assert outcome(train(tmp_path)) == undisturbed["dtd"]
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("change", [{"seed": 1}, {"precision": "bf16"}])
def test_a_checkpoint_of_other_settings_is_not_used(tmp_path, change):
    with pytest.raises(Stopped):
        train(tmp_path / "one", report=stopping(9, "report", stop, setattr))
    settings = FinetuneSettings(**change, checkpoint_every=EVERY)
    first = train(tmp_path / "one", settings=settings)
    assert first.read_bytes() == train(tmp_path / "two", settings=settings).read_bytes()
    assert not list((tmp_path / "one").glob(".*.ckpt"))


def test_a_checkpoint_of_other_data_is_not_used(undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(finetuning_job, "CLASSES", 3)
        train(
            tmp_path, heads={"dtd": finetuning_job.head("dtd", classes=4)}, report=stopping(9, "report", stop, patch.setattr)
        )
    assert list(tmp_path.glob(".*.ckpt"))
    assert outcome(train(tmp_path)) == undisturbed["dtd"]


def test_storing_more_or_less_often_changes_nothing(undisturbed, tmp_path):
    path = train(tmp_path, settings=FinetuneSettings(checkpoint_every=1000, evaluate_every=10))
    assert outcome(path) == undisturbed["dtd"]


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = finetuning_job.clip.build(finetuning_job.SIZE, "packed")
    torch.set_rng_state(before)
    train(tmp_path, model=model, how=quick(steps=2))
    assert torch.equal(torch.get_rng_state(), before)
