"""Several processes in one results_dir, and records that go while tables are made of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.tables import frame, records, rows
from tests.support import two_writers
from tests.support.commands import ROOT
from tests.support.record_factory import TASKS, experiment, store

ROUNDS = 12


def test_two_processes_write_one_record_one_manifest_and_one_table(tmp_path):
    """What a reader sees in between is whole, and in the end nothing of either is missing."""
    results = tmp_path / "results"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "tests.support.two_writers", str(results)]
    writers = [
        subprocess.Popen([*line, name, str(ROUNDS)], env=environment, stderr=subprocess.PIPE, text=True) for name in ("a", "b")
    ]
    path = rows.table_dir(results, two_writers.EXPERIMENT)
    seen, skipped = set(), []
    while any(writer.poll() is None for writer in writers):
        if (path / rows.MANIFEST).is_file():
            assert [row.name for row in rows.read_rows(results, two_writers.EXPERIMENT).rows] == ["a", "b"]
        if (path / "table.csv").is_file():
            seen.add(int(frame.read_csv(path / "table.csv")["seeds"].sum()))
        for record in records.read_all(results, skipped=skipped):
            assert json.loads((record.path / "result.json").read_text())["key"] == record.key
    for writer in writers:
        _, said = writer.communicate()
        assert writer.returncode == 0, said
    assert not skipped
    assert seen, "the table was never read while it was written"
    assert len(records.read_all(results)) == 1 + 2 * ROUNDS
    assert frame.read_csv(path / "table.csv")["seeds"].to_dict() == {"a": ROUNDS, "b": ROUNDS}
    assert not [left for left in results.rglob(".*") if "tmp" in left.name]


def test_a_record_that_went_after_the_manifest_leaves_its_row_empty(command, tmp_path):
    manifest = experiment(tmp_path / "results")
    shutil.rmtree(records.find(tmp_path / "results", manifest.rows[3].keys[0]).path)
    done = command("mini/demo", "--format", "csv", module="fusionbench_lite.tables")
    assert done.returncode == 0, done.stderr
    (tmp_path / "table.csv").write_text(done.stdout)
    table = frame.read_csv(tmp_path / "table.csv")
    assert table["seeds"].to_dict() == {row.name: int(row != manifest.rows[3]) for row in manifest.rows}
    assert table.loc[manifest.rows[3].name, list(TASKS)].isna().all()
    shown = command("mini/demo", module="fusionbench_lite.tables")
    assert "1 of its 1 record" in shown.stdout or manifest.rows[3].name in shown.stdout


def test_a_record_that_goes_while_it_is_compared_is_named(tmp_path):
    record = records.find(tmp_path, store(tmp_path, "tsv_m", dict.fromkeys(TASKS, 0.5)))
    shutil.rmtree(record.path)
    for read in (record.correct, record.answers):
        with pytest.raises(InputError, match=r"was removed while it was read: run its experiment again"):
            read("last")
