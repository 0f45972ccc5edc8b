"""The records of a results folder: which a filter takes, how one reads, what differs between two, what goes and where it goes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionbench_lite import records as cli
from fusionbench_lite.planning.experiments.runs import run_of, write_note
from fusionbench_lite.tables import records
from tests.running.test_run import SMALL
from tests.support.commands import ROOT
from tests.support.record_factory import TASKS, store

HOLD = """
import sys, time, pathlib
from fusionbench_lite.paths import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results [1]"


@pytest.fixture
def keys(results: Path) -> dict[str, str]:
    """Three records with notes, a trial, and a directory that is no record."""
    made = {}
    for name, method, accuracy, seed, limit in (
        ("arithmetic", "task_arithmetic", 0.6, 0, None), ("ties", "ties_merging", 0.7, 0, None),
        ("other seed", "ties_merging", 0.7, 1, None), ("trial", "tsv_m", 0.5, 0, 500),
    ):
        made[name] = store(results, method, dict.fromkeys(TASKS, accuracy), seed=seed, limit=limit)
        write_note(results, run_of([f"method={method}", f"seed={seed}"]), made[name])
    broken = results / "records" / f"tsv_m-vit_mini-mini8-{'0' * 16}"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    return made


def call(capsys, *line: str) -> tuple[int, str]:
    status = cli.main(list(line))
    said = capsys.readouterr()
    return status, said.out + said.err


def there(results: Path) -> set[str]:
    return {record.key for record in records.read_all(results)}


def notes(results: Path) -> set[str]:
    return {json.loads(path.read_text())["key"] for path in (results / "runs").glob("*.json")}


def test_the_list_has_every_record_and_says_what_is_none(results, keys, capsys):
    status, said = call(capsys, f"results_dir={results}")
    assert status == 0
    assert "5 records" in said
    assert f"{keys['arithmetic'][:8]}  task_arithmetic, vit_mini, mini8, seed 0: 0.6000  just now" in said
    assert "TRIAL of 500 examples" in said
    assert "no whole record: Expecting property name" in said


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["method=ties_*"], {"ties", "other seed"}), (["method=ties_*", "seed=1"], {"other seed"}),
        (["tasks=mini?"], {"arithmetic", "ties", "other seed", "trial"}),
        (["tasks=digits+*"], {"arithmetic", "ties", "other seed", "trial"}),
        (["model=vit_l14"], set()), (["older=1d"], set()),
    ],
)
def test_filters(results, keys, capsys, filters, names):
    _, said = call(capsys, f"results_dir={results}", *filters)
    assert {name for name, key in keys.items() if f"{key[:8]}  " in said} == names


def test_one_record_reads_with_the_line_that_makes_it_again(command, capsys, tmp_path):
    made = command("method=task_arithmetic", "method.scaling=0.4", *SMALL)
    assert made.returncode == 0, made.stderr
    (record,) = records.read_all(tmp_path / "results")
    done = command("show", record.key[:10], module="fusionbench_lite.records")
    assert done.returncode == 0, done.stderr
    assert "  scaling = 0.4  (given)" in done.stdout
    assert "TRIAL: at most 48 examples per task" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("python -m fusionbench_lite "))
    assert "method.scaling=0.4" in line
    assert "limit=48" in line


def test_two_records_setting_by_setting(command, tmp_path):
    for scaling in ("0.4", "0.5"):
        assert command("method=task_arithmetic", f"method.scaling={scaling}", *SMALL).returncode == 0
    first, second = sorted(
        records.read_all(tmp_path / "results"), key=lambda record: record.data["hyperparameters"]["scaling"]["value"]
    )
    done = command("compare", first.key, str(second.path), module="fusionbench_lite.records")
    assert done.returncode == 0, done.stderr
    assert "1 settings, files and versions differ\n  method.scaling: 0.4 | 0.5\n" in done.stdout
    assert "average accuracy: " in done.stdout
    assert "95 % paired bootstrap over test examples" in done.stdout


def test_records_that_share_no_examples_are_compared_in_their_settings(results, keys, capsys):
    status, said = call(capsys, "compare", keys["ties"], keys["other seed"], f"results_dir={results}")
    assert status == 0
    assert "data.digits: sha-digits-0 | sha-digits-1" in said
    assert "scores are not compared: " in said


def test_nothing_goes_without_yes_or_without_a_filter(results, keys, capsys):
    _, said = call(capsys, "delete", f"results_dir={results}", "method=ties_*")
    assert "would delete: ties_merging-" in said
    assert "2 records, " in said
    status, said = call(capsys, "delete", f"results_dir={results}", "yes=true")
    assert status == 2
    assert "delete takes no record without a filter: give key, method, model, older, seed, tasks, or key=* for all" in said
    assert there(results) == set(keys.values())


def test_deleted_records_take_their_notes_along(results, keys, capsys):
    status, said = call(capsys, "delete", f"results_dir={results}", "method=ties_*", "yes=true")
    assert (status, said.splitlines()[-1]) == (0, "2 of 2 records deleted")
    assert there(results) == notes(results) == {keys["arithmetic"], keys["trial"]}
    call(capsys, "delete", f"results_dir={results}", "key=*", "yes=true")
    assert not list((results / "records").iterdir()), "what is no record goes with key=*"


def test_a_record_that_a_run_writes_stays(results, keys, capsys):
    lock = results / "partial" / f"{keys['ties']}.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        for action in (["delete"], ["move", f"to={results}2"]):
            status, said = call(capsys, *action, f"results_dir={results}", f"key={keys['ties']}", "yes=true")
            assert status == 1
            assert "a run of its key is at work" in said
        process.kill()
    assert keys["ties"] in there(results)


def across_devices(monkeypatch):
    rename = Path.rename

    def refused(self, target):
        if self.parent.name == "records" and Path(target).parent.name == "records" and not self.name.startswith("."):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)


@pytest.mark.parametrize("device", ["same", "another"])
def test_records_move_whole_with_their_notes(results, keys, capsys, monkeypatch, tmp_path, device):
    if device == "another":
        across_devices(monkeypatch)
    before = records.find(results, keys["ties"]).data
    status, said = call(capsys, "move", f"results_dir={results}", "method=ties_*", f"to={tmp_path / 'to'}", "yes=true")
    assert (status, said.splitlines()[-1]) == (0, "2 of 2 records moved")
    assert there(tmp_path / "to") == notes(tmp_path / "to") == {keys["ties"], keys["other seed"]}
    assert there(results) == notes(results) == {keys["arithmetic"], keys["trial"]}
    assert records.find(tmp_path / "to", keys["ties"]).data == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_is_there_already_is_compared(results, keys, capsys, tmp_path):
    to = tmp_path / "to"
    for name, accuracy in (("ties_merging", 0.7), ("task_arithmetic", 0.3)):
        store(to, name, dict.fromkeys(TASKS, accuracy))
    status, said = call(capsys, "move", f"results_dir={results}", "seed=0", "tasks=mini8", f"to={to}", "yes=true")
    assert status == 1
    assert "is another result of this run" in said
    assert keys["arithmetic"] in there(results) & there(to)
    assert records.find(to, keys["arithmetic"]).data["selections"]["last"]["average"] == pytest.approx(0.3)
    assert keys["ties"] not in there(results), "the same bytes are there"


def test_what_is_no_record_does_not_move(results, keys, capsys, tmp_path):
    _, said = call(capsys, "move", f"results_dir={results}", "key=0000", f"to={tmp_path / 'to'}", "yes=true")
    assert "kept: " in said
    assert "it is no whole record" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["show"], "show takes 1 record, got 0: none"),
        (["compare", "ab"], "compare takes 2 records, got 1: ab"),
        (["show", "ffffffff"], "has the key 'ffffffff'"),
        (["move", "method=ties_*", "yes=true"], "move needs to=DIR"),
        (["list", "yes=true"], "list has no use for yes: leave it out"),
        (["lst"], "unknown action 'lst': did you mean 'list'?"),
        (["older=soon"], "older must be a time, as 30d or 12h or null, got 'soon'"),
        (["metod=x"], "unknown key 'metod': did you mean 'method'?"),
    ],
)
def test_refusals(results, keys, capsys, line, message):
    status, said = call(capsys, *line, f"results_dir={results}")
    assert status == 2
    assert message in said
    assert said.count("\n") == 1


def test_a_beginning_of_several_keys_is_refused(results, keys, capsys):
    status, said = call(capsys, "show", "", f"results_dir={results}")
    assert status == 2
    assert "begins the keys of 5 records" in said


def test_a_move_to_the_same_folder_is_refused(results, keys, capsys):
    status, said = call(capsys, "move", f"results_dir={results}", "key=*", f"to={results}/../{results.name}", "yes=true")
    assert status == 2
    assert "is the folder that records are moved from" in said


@pytest.mark.slow
def test_a_thousand_records_are_listed_in_a_moment_without_torch(results):
    for number in range(1000):
        store(results, "tsv_m", dict.fromkeys(TASKS, 0.5), seed=number, size=50)
    code = "import sys; from fusionbench_lite.records import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, f"results_dir={results}"], env=environment, capture_output=True, text=True, check=True
    )
    assert time.monotonic() - start < 10  # a second and a half on a quiet machine
    assert len(done.stdout.splitlines()) == 1002
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '"x"', "{}", '{"schema": 99999}', "[" * 100_000])
def test_a_result_of_any_form_is_listed_with_its_flaw(results, keys, capsys, text):
    odd = results / "records" / f"tsv_m-vit_mini-mini8-{'1' * 16}"
    odd.mkdir()
    (odd / "result.json").write_text(text)
    status, said = call(capsys, f"results_dir={results}")
    assert status == 0
    assert f"{odd.name}: no whole record: " in said


def test_a_folder_among_records_that_is_none_is_not_removed(results, keys, capsys):
    (results / "records" / "my plots").mkdir()
    _, said = call(capsys, "delete", "key=*", f"results_dir={results}")
    assert "kept: my plots" in said
    assert "would delete: my plots" not in said
    status, said = call(capsys, "delete", "key=*", f"results_dir={results}", "yes=true")
    assert status == 1
    assert "kept: my plots: its name does not end in a key" in said
    assert [path.name for path in (results / "records").iterdir()] == ["my plots"]
