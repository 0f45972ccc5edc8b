"""Names of a user's own tasks: those that nothing has a place for are refused by the plan, all others are what is written."""

from __future__ import annotations

import unicodedata

import pytest

from fusionbench_lite import finetune
from fusionbench_lite.errors import InputError
from fusionbench_lite.planning import plan as planning
from fusionbench_lite.planning import task_sets
from fusionbench_lite.planning.command_line import plan_of

REFUSED = [
    "method", "average", "family", "select", "label", "records", "metrics", "seconds", "seconds_total", "difference",
    "difference_low",
    "average_std", "trial", "seeds", "uses_test_labels", "Average", "Seconds", "95% interval", "Method", "vs CART", "x" * 201,
    "ü" * 101,
    "a\nb", "a\x1bb", "a\udce9",
]
FINE = [
    "1e3", "1000", "007", "7", "null", "true", "on", "off", "8", "mini8", "R&D", "50%", "a|b", "a.b", "a-b", "cat set", "größe",
    "x" * 200,
    "AVERAGE", "averages", "low", "a_low", "pretrained", "heads", "manifest", "step", "x,y", "[z]", "a$b$", "-x", "keys",
    "index", "±",
]


def touch(folder, names):
    for name in names:
        (folder / f"{name}.npz").touch()
    return folder


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: ascii(name)[:20])
def test_a_name_without_a_place_is_refused_by_the_plan(tmp_path, name):
    """The files are empty: nothing of them is read before."""
    touch(tmp_path, ["ok"] if "x" * 201 in name or "ü" * 101 in name else [name, "ok"])
    with pytest.raises(InputError, match="a task cannot be called") as refused:
        task_sets.resolve([name, "ok"], tmp_path, [name, "ok"])
    assert "rename" in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_the_columns_of_one_task_hide_no_other(tmp_path):
    with pytest.raises(InputError, match="'a_std'.*column of that name for task 'a'"):
        task_sets.resolve(["a_std", "a"], tmp_path, ["a", "a_std"])
    assert task_sets.resolve(["a_std", "b"], tmp_path, ["a", "a_std", "b"]).names == ("a_std", "b")


@pytest.mark.parametrize("name", FINE, ids=lambda name: name[:20])
def test_every_other_name_is_the_task_that_is_written(tmp_path, name):
    touch(tmp_path, FINE)
    quoted = f"'{name}'" if "," in name or "[" in name else name
    assert plan_of([f"tasks=[{quoted},ok]", f"data_dir={touch(tmp_path, ['ok'])}"]).tasks == (name, "ok")


def test_the_fix_works_when_it_is_followed(tmp_path):
    touch(tmp_path, ["method", "ok"])
    line = [f"data_dir={tmp_path}", "tasks=[method,ok]"]
    with pytest.raises(InputError, match=r"rename method\.npz and method\.json"):
        plan_of(line)
    (tmp_path / "method.npz").rename(tmp_path / "methods.npz")
    assert plan_of([line[0], "tasks=[methods,ok]"]).tasks == ("methods", "ok")


def test_finetune_refuses_before_it_trains(tmp_path, capsys):
    status = finetune.main([f"data_dir={touch(tmp_path, ['method'])}", "task=method", f"cache_dir={tmp_path / 'cache'}"])
    assert status == 2
    assert capsys.readouterr().err.startswith("fusionbench_lite: a task cannot be called 'method'")
    assert not (tmp_path / "cache").exists()


def test_a_task_called_like_a_set(tmp_path):
    """In brackets it is the task, and its label is not the set's, whose presets are not for it."""
    touch(tmp_path, ["8", "mini8", "ok"])
    assert task_sets.resolve(8, tmp_path, ["8"]).label == "8"
    assert task_sets.resolve(["8"], tmp_path, ["8"]) == task_sets.TaskSet("[8]", ("8",))
    assert plan_of([f"data_dir={tmp_path}", "tasks=[mini8]"]).tasks == ("mini8",)
    assert len(plan_of([f"data_dir={tmp_path}", "tasks=mini8"]).tasks) == 8


@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_an_accent_may_be_a_character_of_its_own(tmp_path, written):
    """Some file systems give names back with their accents apart."""
    stored = unicodedata.normalize("NFD" if written == "NFC" else "NFC", "größe")
    found = task_sets.resolve([unicodedata.normalize(written, "größe")], tmp_path, [stored, "other"])
    assert found.names == (stored,)


def test_accents_that_are_two_tasks_stay_two(tmp_path):
    both = [unicodedata.normalize(form, "größe") for form in ("NFC", "NFD")]
    assert task_sets.resolve(both, tmp_path, both).names == tuple(both)


@pytest.mark.parametrize(("value", "said"), [([1000.0], "1000.0"), ([None], "null"), ([True], "True"), ([["a"]], "['a']")])
def test_values_of_a_file_that_are_no_names_say_how_to_quote(value, said, tmp_path):
    with pytest.raises(InputError) as refused:
        task_sets.resolve(value, tmp_path, ["1e3"])
    assert f"tasks lists {said}, which is no name: put names that read as values in quotes" in str(refused.value)


def test_names_that_differ_in_case_need_a_file_system_that_tells_them_apart(tmp_path, monkeypatch):
    line = [f"data_dir={touch(tmp_path, ['Cats', 'cats'])}", "tasks=[Cats,cats]"]
    assert plan_of(line).tasks == ("Cats", "cats")
    monkeypatch.setattr(planning, "ignores_case", lambda path: True)
    with pytest.raises(InputError, match="'Cats' and 'cats' differ only in upper and lower case"):
        plan_of(line)
    assert plan_of([line[0], "tasks=[cats]"]).tasks == ("cats",)


@pytest.mark.parametrize("name", ["../up", "..", "a/b"])
def test_a_name_leads_out_of_no_folder(tmp_path, name):
    (tmp_path / "in").mkdir()
    touch(tmp_path, ["up"])
    with pytest.raises(InputError, match="unknown task"):
        plan_of([f"data_dir={tmp_path / 'in'}", f"tasks=[{name}]"])
