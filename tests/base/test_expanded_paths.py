"""One place expands what users write: `~`, users, variables, and names that only look like them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusionbench_lite import paths
from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import expanded


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~", "{home}"), ("~/d", "{home}/d"), ("$HOME/d", "{home}/d"), ("${HOME}/d", "{home}/d"), ("$DISK/a b", "{root}/disk/a b"),
        ("~/$DISK", "{home}/{root}/disk"), ("d/", "d"), ("a ~b", "a ~b"), ("50%", "50%"), ("$", "$"), ("a$.b", "a$.b"), (".", "."),
        ("./~/d", "{root}/~/d"), ("./~nobody-here", "{root}/~nobody-here"), ("tail ", "tail "),
    ],
)
def test_what_is_written_is_what_is_meant(tmp_path, written, meant):
    found = expanded(written)
    assert found == Path(meant.format(home=tmp_path / "home", root=tmp_path))
    assert expanded(found) == found  # whoever expands again changes nothing


def test_a_user_is_looked_up(monkeypatch):
    pwd = pytest.importorskip("pwd")
    me = pwd.getpwuid(os.getuid())
    assert expanded(f"~{me.pw_name}/d") == Path(me.pw_dir, "d")


def test_a_user_without_a_home_is_refused_with_what_works(tmp_path):
    with pytest.raises(InputError, match=r"~nobody-here/d: ~nobody-here has no home folder: write \./~nobody-here/d") as refused:
        expanded("~nobody-here/d")
    assert expanded(str(refused.value).split("write ")[1].split(" for")[0]) == tmp_path / "~nobody-here/d"
    (tmp_path / "~nobody-here").mkdir()
    assert expanded("~nobody-here") == tmp_path / "~nobody-here"


@pytest.mark.parametrize("home", ["", None])
def test_a_home_that_is_nowhere_is_never_a_folder_called_tilde(monkeypatch, home):
    monkeypatch.setenv("HOME", "") if home == "" else monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    with pytest.raises(InputError, match="~ has no home folder"):
        expanded("~/d")


def test_a_folder_called_tilde_is_not_the_home(tmp_path):
    (tmp_path / "~" / "d").mkdir(parents=True)
    assert expanded("~/d") == tmp_path / "home" / "d"


def test_a_variable_that_is_not_set_is_refused_with_what_works(tmp_path, monkeypatch):
    for written in ("$NO_SUCH_VARIABLE/d", "${NO_SUCH_VARIABLE}/d"):
        with pytest.raises(InputError, match="the environment variable NO_SUCH_VARIABLE is not set: set it, or make"):
            expanded(written)
    monkeypatch.setenv("NO_SUCH_VARIABLE", "x")
    assert expanded("$NO_SUCH_VARIABLE/d") == Path("x/d")


def test_a_dollar_in_the_name_of_what_is_there_is_no_variable(tmp_path):
    (tmp_path / "a$NO_SUCH_VARIABLE").mkdir()
    (tmp_path / "$DISK").mkdir()
    for written in ("a$NO_SUCH_VARIABLE", "a$NO_SUCH_VARIABLE/new/folder"):
        assert expanded(written) == Path(written)
    assert expanded("$DISK") == Path("$DISK")  # as written it is there, expanded it is not
    (tmp_path / "disk").mkdir()
    assert expanded("$DISK") == tmp_path / "disk"


def test_interpolations_are_left_to_hydra(tmp_path):
    assert expanded("~/${now:%Y}/${results_dir}", interpolated=True) == tmp_path / "home/${now:%Y}/${results_dir}"
    assert expanded("${DISK}/${results_dir}", interpolated=True) == tmp_path / "disk/${results_dir}"
    with pytest.raises(InputError, match="NO_SUCH_VARIABLE"):
        expanded("$NO_SUCH_VARIABLE/${results_dir}", interpolated=True)


def test_a_folder_to_write_into_has_no_file_in_its_place(tmp_path):
    (tmp_path / "file").touch()
    assert paths.folder("out", tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"out={place}: {tmp_path / 'file'} is no folder"):
            paths.folder("out", place)


def test_what_is_too_long_for_any_file_system_is_nowhere(tmp_path):
    assert paths.nearest_existing(tmp_path / ("x" * 5000)) == tmp_path
    assert expanded("$DISK/" + "x" * 5000).parent == tmp_path / "disk"


def test_whether_a_file_system_ignores_case_is_seen_by_a_twin(tmp_path, monkeypatch):
    (tmp_path / "Cache").mkdir()
    assert not paths.ignores_case(tmp_path / "Cache" / "new") or (tmp_path / "cACHE").exists()
    (tmp_path / "cACHE").symlink_to(tmp_path / "Cache") if not (tmp_path / "cACHE").exists() else None
    assert paths.ignores_case(tmp_path / "Cache" / "new")
