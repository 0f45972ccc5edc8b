"""`experiment=all` from two processes: what one holds the other leaves, and what a killed one leaves the next one makes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionbench_lite.planning import experiments
from fusionbench_lite.running import all_tables
from fusionbench_lite.tables import records
from tests.support.commands import ROOT

pytestmark = pytest.mark.slow
TABLES = ["adarank/table_4", "adamerging/text_2"]
LINE = (
    "experiment=all", "scale=mini", "seed=0", "steps=1", "limit=4", "checkpoints.recipe={pretrain_steps: 1, finetune_steps: 1}",
)
STOPS_AFTER_A_RUN = f"""
import pathlib, sys, time
from fusionbench_lite.planning import experiments
from fusionbench_lite.running import table
experiments.names = lambda: {TABLES}
execute = table.execute
def stop(*arguments):
    execute(*arguments)
    pathlib.Path("stopped").touch()
    time.sleep(600)
table.execute = stop
from fusionbench_lite.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def two_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "names", lambda: TABLES)
    monkeypatch.setattr(all_tables, "PASSING", 0.1)


@pytest.fixture
def holding(tmp_path: Path, shared_cache: Path):
    """A process that has made one run and holds the others of its group."""
    environment = os.environ | {"FUSIONBENCH_LITE_CACHE": str(shared_cache), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", STOPS_AFTER_A_RUN, *LINE], cwd=tmp_path, env=environment) as process:
        end = time.monotonic() + 120
        while not (tmp_path / "stopped").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        assert (tmp_path / "stopped").exists()
        yield process
        process.kill()


def counts(said: str) -> tuple[int, ...]:
    return tuple(map(int, re.search(r"2 tables, (\d+) runs: (\d+) have a record, (\d+) to do", said).groups()))


def test_a_group_that_is_held_is_left_and_one_of_a_killed_process_is_made(holding, command, two_tables, tmp_path) -> None:
    results = tmp_path / "results"
    beside = command(*LINE)
    assert beside.returncode == 0, beside.stderr
    runs, found, _ = counts(beside.stdout)
    assert found == 1
    left = int(re.search(r"(\d+) runs are left to another process", beside.stdout)[1])
    assert left >= 1
    made = runs - left
    assert len(list(records.read_all(results))) == made > 1
    assert not (results / "tables").exists()
    os.kill(holding.pid, signal.SIGKILL)
    holding.wait()
    after = command(*LINE)
    assert counts(after.stdout) == (runs, made, left)
    assert len(list(records.read_all(results))) == runs
    for name in TABLES:
        assert f"{name}-mini: " in after.stdout
        assert (results / "tables" / f"{name}-mini" / "table.csv").is_file()


def test_what_another_process_made_in_the_meantime_is_found_and_the_tables_written(holding, command, two_tables, tmp_path) -> None:
    """The group was held at first; at the second look its process is gone."""
    ask, asked = all_tables._taken, []

    def taken(results_dir, plan, wait):
        if wait and not asked:
            os.kill(holding.pid, signal.SIGKILL)
            holding.wait()
            asked.append(plan)
        return ask(results_dir, plan, wait)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(all_tables, "_taken", taken)
        done = command(*LINE)
    assert asked
    assert "left to another process" not in done.stdout
    assert len(list(records.read_all(tmp_path / "results"))) == counts(done.stdout)[0]
    assert (tmp_path / "results" / "tables" / f"{TABLES[0]}-mini" / "table.csv").is_file()
