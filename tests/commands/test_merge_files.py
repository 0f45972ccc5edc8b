"""`python -m fusionbench_lite.merge_files`: the API on a line; bad input is one line and status 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import fusionbench_lite as fbl
import fusionbench_lite.merge_files as command
from tests.methods.test_files_out import everything
from tests.support.stored_models import indexed, model


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    folders = [indexed(tmp_path / "in" / name, model(seed)) for seed, name in enumerate(("base", "my a, (1)", "b"))]
    experts = f"experts={{1e3: '{folders[1]}', b: {folders[2]}}}"
    return ["method=ties_merging", f"base={folders[0]}", experts, f"out={tmp_path / 'out'}"]


def test_a_line_is_the_call(tmp_path, line, capsys):
    assert command.main([*line, "method.keep=0.5", "method.scaling=4e-1", "method.reduce=mean", "shard_size=200B"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 2 files, 912 B written and read back\n"
    experts = {"1e3": tmp_path / "in" / "my a, (1)", "b": tmp_path / "in" / "b"}
    whole = fbl.merge_files(  # which is the module now that it is imported, and can be called
        "ties_merging", tmp_path / "in" / "base", experts, tmp_path / "whole", shard_bytes=200, keep=0.5, scaling=0.4,
        reduce="mean",
    )
    assert everything(tmp_path / "out") == everything(whole)
    assert set(load_file(whole / "model-00001-of-00002.safetensors")) < set(model())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "ties_mergin"}, "unknown method 'ties_mergin': did you mean 'ties_merging'?"),
        ({"method.kep": "0.5"}, "method 'ties_merging' has no hyperparameter 'kep': did you mean 'keep'?"),
        ({"method.keep": "2"}, "method 'ties_merging': keep must be a finite number in (0, 1], got 2"),
        ({"experts": None}, "experts is missing: give method=NAME base=DIR 'experts={a: DIR, b: DIR}' out=DIR"),
        ({"experts": "[/a, /b]"}, "experts must be paths by task, as in 'experts={a: DIR, b: DIR}', got '[/a, /b]'"),
        ({"experts": "{a: /a, a: /b}"}, "('a' is there twice)"),
        ({"experts": "{a: /a"}, "(quote paths with commas, colons or brackets)"),
        ({"experts": "{a: /nowhere}"}, "expert 'a': '/nowhere' does not exist: give"),
        ({"shard_size": "many"}, "shard_size must be a size, as in 5GB or 500MB or null, got 'many'"),
        ({"shard_size": "0GB"}, "shard_size must be a size"),
        ({"shard_size": "9" * 400}, "shard_size must be a size"),
        ({"resize": "zero"}, "resize must be one of mean, pad or null, got 'zero'"),
        ({"shards": "3"}, "unknown key 'shards'"),
        ({"-m": None}, "'-m' sets nothing: give KEY=VALUE"),
    ],
)
def test_bad_input_is_one_line(tmp_path, line, capsys, change, said):
    given = dict(argument.split("=", 1) for argument in line) | change
    assert command.main([key if key == "-m" else f"{key}={value}" for key, value in given.items() if value or key == "-m"]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert not (tmp_path / "out").exists()


def test_help_says_the_keys(capsys):
    assert command.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"{key}=" in said for key in ("method", "base", "experts", "out", "shard_size", "resize"))
