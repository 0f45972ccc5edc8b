"""Records of other versions of the schema: migrated as they are read, or refused with the command that makes them again."""

from __future__ import annotations

import json
import shlex

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.planning import recorded
from fusionbench_lite.tables import migrations, records, schema
from tests.running.test_run import SMALL
from tests.support.record_factory import TASKS, store


def _rewritten(path, version, **changes):
    """Make a record one of another version: `changes` are entries, None to leave one out."""
    data = json.loads((path / "result.json").read_text()) | {"schema_version": version} | changes
    (path / "result.json").write_text(json.dumps({name: value for name, value in data.items() if value != "left out"}))
    return path


@pytest.fixture
def stored(tmp_path):
    return records.find(tmp_path, store(tmp_path, "tsv_m", dict.fromkeys(TASKS, 0.7))).path


def test_an_old_record_is_read_through_every_step_and_stays_as_it_is(stored, tmp_path, monkeypatch):
    """Version 0 had `memory` in place of `peak_bytes`, version 1 had no unit of its seconds; the files are synthetic."""
    renamed = {0: lambda data: {**{k: v for k, v in data.items() if k != "memory"}, "peak_bytes": data["memory"]},
               1: lambda data: {**data, "seconds": {name: value / 1000 for name, value in data["seconds"].items()}}}
    monkeypatch.setattr(schema, "VERSION", 2)
    monkeypatch.setattr(migrations, "MIGRATIONS", renamed)
    _rewritten(stored, 0, memory=77, peak_bytes="left out", seconds={"total": 5000})
    before = (stored / "result.json").read_bytes()
    record = records.read(stored)
    assert (record.data["schema_version"], record.data["peak_bytes"], record.data["seconds"]) == (2, 77, {"total": 5.0})
    assert "memory" not in record.data
    assert records.find(tmp_path, record.key) == record
    assert record.correct("last")["digits"].sum() == 350
    assert (stored / "result.json").read_bytes() == before


def test_an_old_record_that_is_not_whole_is_named(stored, monkeypatch):
    monkeypatch.setattr(migrations, "MIGRATIONS", {0: lambda data: {**data, "peak_bytes": data["memory"]}})
    with pytest.raises(InputError, match=r"not a complete record, ignored: it is not a whole one of schema version 0: KeyError"):
        records.read(_rewritten(stored, 0))


@pytest.mark.parametrize(("version", "fix"), [(0, "make it anew: python -m "), (2, "update fusionbench_lite, or make it anew: ")])
def test_another_version_is_one_line_with_the_record_both_versions_and_the_fix(stored, tmp_path, version, fix):
    _rewritten(stored, version)
    skipped: list[str] = []
    assert records.read_all(tmp_path, skipped=skipped) == []
    (line,) = skipped
    assert line.startswith(f"{stored} is a record of schema version {version}, this version of fusionbench_lite reads 1: {fix}")
    assert f"method=tsv_m results_dir={tmp_path}" in line
    assert records.find(tmp_path, stored.name[-16:]) is None


@pytest.mark.parametrize("version", [None, "1", True, 1.0])
def test_a_version_that_is_no_number_is_named(stored, version):
    with pytest.raises(InputError, match=f"schema_version is {version!r}, this version reads 1"):
        records.read(_rewritten(stored, version))


def test_the_command_of_a_record_makes_it_again(command, tmp_path):
    """With what is given, quoted where a shell needs it, and with nothing that is a default."""
    line = ["method=adarank", "method.base=ta", "steps=1", "method.scaling=0.2", "method.adaptation.batch_size=4", *SMALL, "seed=3"]
    assert command(*line).returncode == 0
    (record,) = records.read_all(tmp_path / "results")
    _rewritten(record.path, 0)
    skipped: list[str] = []
    records.read_all(tmp_path / "results", skipped=skipped)
    python, module, package, *arguments = shlex.split(skipped[0].partition("anew: ")[2])
    assert (python, module, package) == ("python", "-m", "fusionbench_lite")
    assert {"method.base=ta", "method.scaling=0.2", "seed=3", "steps=1", "limit=48"} <= set(arguments)
    assert not [one for one in arguments if one.startswith(("method.lr", "method.learn", "device", "checkpoints.seed"))]
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "schema version 0" in done.stderr
    assert [again.key for again in records.read_all(tmp_path / "results")] == [record.key]
    assert records.read(record.path).data["schema_version"] == 1


def test_a_run_does_not_replace_the_record_of_a_newer_version(command, tmp_path):
    line = ("method=pretrained", *SMALL)
    assert command(*line).returncode == 0
    (record,) = records.read_all(tmp_path / "results")
    newer = (_rewritten(record.path, 2) / "result.json").read_bytes()
    done = command(*line)
    assert done.returncode == 2
    assert "reads 1: update fusionbench_lite, or make it anew: " in done.stderr
    assert (record.path / "result.json").read_bytes() == newer
    assert command(*line, "overwrite=true").returncode == 0
    assert records.read(record.path).key == record.key


@pytest.mark.parametrize("config", [{}, {"method": "tsv_m", "model": {"name": "x"}}, {"method": {"id": "a"}, "model": {}}])
def test_a_configuration_without_method_or_model_has_no_command(config, tmp_path):
    assert recorded.command(config, tmp_path) is None
