"""Runs with paths and tasks as people have them: what is made lies where the line says, and nowhere else."""

from __future__ import annotations

import pytest

from fusionbench_lite.tables import records
from tests.support import odd_tasks

ODD = "lr=1e-3, (v2) [x] {y} :z: ½ #1 'q\" %d @h "
NAMES = ["1e3", "R&D", "$x$", "a.b"]
TASKS = f"tasks=[{','.join(NAMES)}]"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder that holds the tasks, outside the folder that commands run in."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HOME", str(folder))
    odd_tasks.write(folder / ODD / "d", NAMES)
    return folder


@pytest.fixture
def run(home, tmp_path):
    """Run a command in an empty folder and see that it stays so."""
    from tests.support.commands import in_its_own_process, in_this_process

    where = tmp_path / "here"
    where.mkdir()

    def started(*line, own=False, **given):
        made = (in_its_own_process if own else in_this_process)(where, tmp_path / "cache")
        done = made(*line, **given)
        assert done.returncode == 0, done.stderr
        assert not list(where.iterdir())
        assert not [path for path in tmp_path.rglob("*") if path.name in ("~", "$DISK")]
        return done

    return started


LINE = [TASKS, f"data_dir=~/{ODD}/d", f"results_dir=~/{ODD}/r", odd_tasks.RECIPE]


def test_a_run_and_what_reads_its_record(run, home):
    results = home / ODD / "r"
    done = run("method=weight_averaging", *LINE)
    [record] = records.read_all(results)
    assert record.tasks == NAMES
    assert f"recorded in {record.path}" in done.stdout  # not a sign of the path is taken for a style
    assert "found in" in run("method=weight_averaging", *LINE[:2], f"results_dir={results}", *LINE[3:]).stdout
    assert run(*LINE, module="fusionbench_lite.doctor").stdout
    assert str(results.parent / "r") in str(record.path)


def test_a_sweep_and_a_logger(run, home):
    run("-m", "method=weight_averaging,pretrained", *LINE)
    results = home / ODD / "r"
    assert {record.method for record in records.read_all(results)} == {"weight_averaging", "pretrained"}
    assert list(results.glob("sweeps/*/*/multirun.yaml"))
    quoted = [TASKS, f"data_dir={home / ODD / 'd'}", "results_dir='~/q'", odd_tasks.RECIPE]
    run("method=adamerging_taskwise", "steps=1", "method.adaptation.held_out=0", "logger=csv", *quoted)
    assert list(home.glob("q/logs/csv/*/metrics.csv"))
    pictures = run(records.read_all(home / "q")[0].key, "--results-dir", "~/q", module="fusionbench_lite.pictures").stdout
    assert str(home / "q" / "pictures") in pictures


def test_variables_of_the_environment(run, home, monkeypatch):
    monkeypatch.setenv("DISK", str(home / ODD))
    run("method=weight_averaging", TASKS, "data_dir=$DISK/d", "results_dir=${DISK}/r", "cache_dir=~/c", odd_tasks.RECIPE)
    assert records.read_all(home / ODD / "r")
    assert list(home.glob("c/zoo/*/manifest.json"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_workers_of_a_launcher(run, home, launcher):
    run("-m", "method=weight_averaging,pretrained", f"hydra/launcher={launcher}", *LINE, own=True)
    assert {record.method for record in records.read_all(home / ODD / "r")} == {"weight_averaging", "pretrained"}


def test_a_comma_in_a_path_of_a_sweep(run, home):
    odd_tasks.write(home / "x,y", NAMES[:1])
    odd_tasks.write(home / "z (1)", NAMES[:1], seed=1)
    line = ["method=individual", "tasks=[1e3]", odd_tasks.RECIPE]
    run("-m", *line, "data_dir=~/x,y", "results_dir='~/p,q'")
    assert len(records.read_all(home / "p,q")) == 1
    run("-m", *line, "data_dir='~/x,y',~/z (1)", "results_dir=~/r")
    found = {record.data["config"]["data_dir"] for record in records.read_all(home / "r")}
    assert found == {str(home / "x,y"), str(home / "z (1)")}
