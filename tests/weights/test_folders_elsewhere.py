"""Paths that lead nowhere, or to a folder above the one that was meant."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import fusionbench_lite as fbl
from tests.support.lora_files import base_state, write_adapter
from tests.support.stored_models import expert_read, fault, model, one, reads


def cache(root: Path, *snapshots: str, main: str | None = None) -> Path:
    repository = root / "models--me--m"
    for seed, snapshot in enumerate(snapshots):
        one(repository / "snapshots" / snapshot / "model.safetensors", model(seed))
    if main is not None:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(main)
    return repository


def test_the_cache_of_the_hub(tmp_path):
    repository = cache(tmp_path, "abc")
    for path in (repository, repository / "snapshots", tmp_path):
        text = fault(path)
        assert text == f"{path} holds no .safetensors file itself: give {repository / 'snapshots' / 'abc'}"
    reads(repository / "snapshots" / "abc")


def test_the_cache_of_the_hub_with_two_snapshots(tmp_path):
    repository = cache(tmp_path, "abc", "def")
    assert "give one of " in fault(repository)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("def\n")
    for path in (repository, repository / "snapshots", tmp_path):
        assert fault(path).endswith(f"itself: give {repository / 'snapshots' / 'def'}")
    (repository / "refs" / "main").write_text("gone")
    assert "give one of " in fault(repository)


def test_a_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert fault("me/m") == "'me/m' is no path but a name of the Hugging Face hub: hf download me/m prints the folder to give"
    snapshot = cache(tmp_path / "hub", "abc", main="abc") / "snapshots" / "abc"
    assert fault("me/m").endswith(f"a name of the Hugging Face hub; it was downloaded before: give {str(snapshot)!r}")
    reads(snapshot)
    one(tmp_path / "me" / "m" / "model.safetensors")  # a path after all
    reads("me/m")
    assert "does not exist: did you mean 'me/m'?" in fault("me/mm")


@pytest.mark.parametrize("address", ["https://huggingface.co/me/m", "hf://me/m", "s3://bucket/m", "file:///tmp/m"])
def test_addresses(address):
    assert fault(address) == f"{address!r} is an address: download what is there and give the path of its folder"


def test_an_empty_path_is_not_the_working_directory(tmp_path, monkeypatch):
    one(tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert fault("") == "the path is empty: give a .safetensors file or a directory of them"
    reads(".")


@pytest.mark.parametrize("name", ["model.safetensors.crdownload", "model.safetensors.part", "a1b2.incomplete"])
def test_downloads_that_have_not_ended(tmp_path, name):
    (tmp_path / name).touch()
    assert fault(tmp_path) == f"{tmp_path} holds no .safetensors file, only {name}, a download that has not ended: fetch it again"


@pytest.mark.parametrize("slip", ["model.safetensor", "Model.safetensors", "model.safetensors ", "model.safetensors\n"])
def test_misspelt_paths(tmp_path, slip):
    path = one(tmp_path / "model.safetensors")
    assert f"did you mean {str(path)!r}?" in fault(tmp_path / slip)


def test_run_folders(tmp_path):
    base = base_state()
    for number in (10, 9, 100, 1000):
        write_adapter(tmp_path / "run" / f"checkpoint-{number}")
    first = [str(tmp_path / "run" / f"checkpoint-{number}") for number in (9, 10, 100)]
    assert fault(tmp_path / "run").endswith(f"run holds no .safetensors file itself: give one of {', '.join(first)} (and 1 more)")
    write_adapter(tmp_path / "named" / "default")
    text = fault(tmp_path / "named")
    assert text.endswith(f"give {tmp_path / 'named' / 'default'}")
    assert expert_read(tmp_path / "named" / "default", base).keys() == base.keys()


def test_a_result_with_one_model_per_task_names_them(tmp_path):
    out = fbl.merge_files("individual", model(), {"a": model(1), "b": model(2)}, tmp_path / "out")
    assert fault(out).endswith(f"give one of {out / 'a'} or {out / 'b'}")
    reads(out / "a", 1)


def test_tilde_and_variables(tmp_path, monkeypatch):
    one(tmp_path / "m" / "model.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODELS", str(tmp_path))
    for path in ("~/m", "$MODELS/m", "${MODELS}/m/model.safetensors"):
        reads(path)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    one(tmp_path / "m" / "model.safetensors")
    monkeypatch.setattr(Path, "iterdir", refuse)
    assert fault(tmp_path / "m") == f"cannot read {tmp_path / 'm'}: Permission denied: permit reading it"
