"""Whole runs through the command line on a small zoo: records, reuse, resume after SIGKILL, selection, refusals."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from fusionbench_lite import paths, registry
from fusionbench_lite.errors import MergeWarning
from fusionbench_lite.paths import config_dir
from fusionbench_lite.running import run as running
from fusionbench_lite.tables import records
from tests.support.commands import ROOT, in_this_process

SMALL = (
    "tasks=[digits,signs,land]", "limit=48",
    "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}",
)
SHORT = ("method.adaptation.eval_every=4", "method.adaptation.batch_size=4", "trainer.checkpoint_every=2")


def _record(folder: Path) -> records.Record:
    found = records.read_all(folder / "results")
    assert len(found) == 1
    return found[0]


def _essence(record: records.Record) -> dict:
    """What a run determines, without clocks and memory."""
    essence = {name: value for name, value in record.data.items() if name not in ("seconds", "peak_bytes", "git_revision")}
    arrays = np.load(record.path / "samples.npz")
    essence["samples"] = {name: arrays[name].tolist() for name in arrays.files}
    for name in ("history.csv", "learned.safetensors"):
        path = record.path / name
        essence[name] = path.read_bytes() if path.exists() else None
    return essence


def _refusals(error: str) -> int:
    """Count the lines that are not news of another test's process at work on the same experts."""
    lines = [line for line in error.splitlines() if not line.startswith("another process is at work")]
    assert all(line.startswith("fusionbench_lite: ") for line in lines), error
    return len(lines)


METHODS = sorted(path.stem for path in (config_dir() / "method").glob("*.yaml"))
ADAPTIVE = [method for method in METHODS if method == "adarank" or registry.get(method).adaptive]
PAIRS = [method for method in METHODS if method.endswith("slerp")]
SWEEPS = {
    **{f"adaptive {part}": (ADAPTIVE[part::4], ["steps=1", "method.adaptation.batch_size=4"]) for part in range(4)},
    "pairs": (PAIRS, ["checkpoints.experts=2"]),
    "data_free": ([method for method in METHODS if method not in (*ADAPTIVE, *PAIRS)], []),
}


@pytest.mark.parametrize("kind", SWEEPS)
def test_every_method_config_runs_for_one_step(command, tmp_path, kind):
    methods, settings = SWEEPS[kind]
    done = command("-m", f"method={','.join(methods)}", *SMALL, *settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("recorded in") + done.stdout.count("found in") == len(methods)
    found = {record.method: record for record in records.read_all(tmp_path / "results")}
    assert set(found) == {"adarank_cart" if method == "adarank" else method for method in methods}
    for record in found.values():
        assert record.data["limit"] == 48
        cell = record.data["selections"]["last"]["per_task"]["digits"]
        assert cell["examples"] == 48
        assert cell["interval"][0] <= cell["value"] <= cell["interval"][1]
        if kind.startswith("adaptive"):
            assert record.data["selections"]["last"]["step"] == 1
            assert record.data["hyperparameters"]["steps"] == {"value": 1, "source": "given"}
        else:
            assert set(record.data["storage"]) == {"pretrained", "shared", "per_task"}
            assert record.data["warnings"] == []


def test_an_adaptive_record_holds_its_course_and_what_it_learned(command, tmp_path):
    arguments = ("method=adarank", "steps=9", *SMALL, *SHORT)
    assert command(*arguments).returncode == 0
    record = _record(tmp_path)
    with (record.path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(10))
    assert [int(row["step"]) for row in rows if row["average"]] == [0, 4, 8, 9]
    assert all(float(row["loss"]) > 0 for row in rows[1:])
    with safe_open(record.path / "learned.safetensors", "numpy") as learned:
        assert any(name.startswith("masks/") for name in sorted(learned.keys()))
        assert learned.get_tensor("coefficients/conv1.weight").shape == (3,)
    selections = record.data["selections"]
    averages = {int(row["step"]): float(row["average"]) for row in rows if row["average"]}
    assert selections["last"]["average"] == pytest.approx(averages[9])
    assert selections["best_test"]["average"] == pytest.approx(max(averages.values()))
    assert selections["best_test"]["uses_test_labels"]
    assert not selections["last"]["uses_test_labels"]
    assert not (tmp_path / "results" / "partial" / record.key).exists()
    assert record.data["scale"] == "mini"


def test_the_same_line_again_does_no_work(command, tmp_path):
    arguments = ("method=adamerging_layerwise", "steps=2", *SMALL, *SHORT)
    assert "recorded in" in command(*arguments).stdout
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "records").rglob("*")}
    again = command(*arguments)
    assert "found in" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shown = command(*arguments, "select=best_test")
    assert "found in" in shown.stdout
    assert "†" in shown.stdout
    assert "recorded in" in command(*arguments, "overwrite=true").stdout
    assert len(records.read_all(tmp_path / "results")) == 1


@pytest.mark.parametrize("method", ["adarank", pytest.param("adamerging_taskwise", marks=pytest.mark.slow)])
def test_killed_in_the_middle_the_same_line_finishes_with_the_same_record(tmp_path, shared_cache, method):
    arguments = [f"method={method}", "steps=60", *SMALL, *SHORT]
    environment = {**os.environ, "FUSIONBENCH_LITE_CACHE": str(shared_cache), "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "fusionbench_lite", *arguments]
    for folder in ("undisturbed", "killed"):
        (tmp_path / folder).mkdir()
    assert in_this_process(tmp_path / "undisturbed", shared_cache)(*arguments).returncode == 0
    process = subprocess.Popen(
        line, cwd=tmp_path / "killed", env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not list((tmp_path / "killed").glob("results/partial/*/last.ckpt")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not records.read_all(tmp_path / "killed" / "results")
    assert in_this_process(tmp_path / "killed", shared_cache)(*arguments).returncode == 0
    assert _essence(_record(tmp_path / "killed")) == _essence(_record(tmp_path / "undisturbed"))


@pytest.mark.slow
def test_two_processes_share_one_run(tmp_path, shared_cache, command):
    arguments = ["method=adamerging_layerwise", "steps=6", *SMALL, *SHORT]
    assert command(*arguments).returncode == 0
    environment = {**os.environ, "FUSIONBENCH_LITE_CACHE": str(shared_cache), "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    (tmp_path / "two").mkdir()
    done = subprocess.run(
        [*launcher, "-m", "fusionbench_lite", *arguments], cwd=tmp_path / "two", env=environment, capture_output=True,
        text=True, check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = _record(tmp_path), _record(tmp_path / "two")
    assert one.key == two.key
    with safe_open(one.path / "learned.safetensors", "numpy") as first:
        with safe_open(two.path / "learned.safetensors", "numpy") as second:
            for name in sorted(first.keys()):
                np.testing.assert_allclose(first.get_tensor(name), second.get_tensor(name), rtol=0, atol=1e-5)


def test_a_sweep_leaves_one_record_per_job(command, tmp_path):
    done = command("-m", "method=ties_merging,task_arithmetic", "method.scaling=0.2,0.3", *SMALL)
    assert done.returncode == 0, done.stderr
    scalings = {(r.method, *r.data["hyperparameters"]["scaling"].values()) for r in records.read_all(tmp_path / "results")}
    assert scalings == {(m, s, "given") for m in ("ties_merging", "task_arithmetic") for s in (0.2, 0.3)}


@pytest.mark.slow
def test_a_refusal_in_a_worker_of_joblib_is_not_lost(process):
    line = ["-m", "method=pretrained,weight_averaging", *SMALL, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = process(*line, "checkpoints.dir=/nonexistent")
    assert done.returncode == 2
    assert "/nonexistent is not a directory" in done.stderr


def test_a_sweep_with_joblib(process, tmp_path):
    line = ["-m", "method=task_arithmetic,ties_merging", "method.scaling=0.3", *SMALL]
    done = process(*line, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    scalings = {(r.method, *r.data["hyperparameters"]["scaling"].values()) for r in records.read_all(tmp_path / "results")}
    assert scalings == {("task_arithmetic", 0.3, "given"), ("ties_merging", 0.3, "given")}  # given, though it is the default


@pytest.mark.slow
def test_a_sweep_in_jobs_of_their_own(process, tmp_path):
    done = process("-m", "method=pretrained", *SMALL, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=15")
    assert done.returncode == 0, done.stderr
    assert _record(tmp_path).method == "pretrained"


def test_a_full_disk_leaves_no_record(command, tmp_path, monkeypatch):
    def full(path):
        if ".tmp" in str(path) and "records" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paths, "_flush", full)
    done = command(*SMALL)
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in done.stderr
    assert _refusals(done.stderr) == 1
    assert not list((tmp_path / "results").glob("records/*"))


def test_an_expert_with_a_nan_is_refused(command, tmp_path, shared_cache):
    import torch
    from safetensors.torch import load_file, save_file

    assert command("method=pretrained", *SMALL).returncode == 0
    zoo = next(path for path in (shared_cache / "zoo").iterdir() if (path / "individual-signs.safetensors").exists())
    own = tmp_path / "own"
    own.mkdir()
    for path in zoo.glob("*.safetensors"):
        weights = load_file(path)
        if path.name == "individual-signs.safetensors":
            weights["conv1.weight"][0, 0, 0, 0] = torch.nan
        save_file(weights, own / path.name)
    done = command("method=task_arithmetic", *SMALL, f"checkpoints.dir={own}")
    assert done.returncode == 2
    assert "expert 'signs': 'conv1.weight' has 1 non-finite of" in done.stderr
    assert _refusals(done.stderr) == 1
    assert len(records.read_all(tmp_path / "results")) == 1


def test_result_json_names_sources_and_versions(command, tmp_path):
    assert command("method=adarank", "steps=1", *SMALL, "method.scaling=1.5").returncode == 0
    data = json.loads((_record(tmp_path).path / "result.json").read_text())
    assert data["method"] == "adarank_cart"
    assert data["hyperparameters"]["scaling"] == {"value": 1.5, "source": "given"}
    assert data["hyperparameters"]["rank_ratio"] == {"value": 0.16, "source": "default"}
    assert data["hyperparameters"]["stream"]["source"].startswith("preset: embedded suite")
    assert data["config"]["method"]["base"] == "cart"
    assert {"torch", "lightning", "python", "fusionbench_lite"} <= set(data["versions"])
    assert set(data["data"]) == {"digits", "signs", "land"}
    assert all(len(hash) == 64 for hash in data["checkpoints"]["files"].values())


def test_a_warning_of_a_base_and_of_the_method_is_recorded_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for text in ("experts changed 'n'", "another", "experts changed 'n'"):
            warnings.warn(text, MergeWarning, stacklevel=1)
    assert list(running._said(caught)) == ["experts changed 'n'", "another"]
