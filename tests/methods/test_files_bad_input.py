"""Files that are refused: one line that names the path and what to do."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fusionbench_lite as fbl
from fusionbench_lite.weights.stored.indexes import INDEX
from tests.support.helpers import State, expert_of, rng

BASE = {"a.weight": torch.randn(6, 5, generator=rng(1)), "a.bias": torch.randn(6, generator=rng(2)), "n": torch.arange(3)}


def save(path: Path, state: State) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    return path


def refuse(path: str | Path, *parts: str, names: str | None = None) -> None:
    """Neither as an expert nor as the pretrained model, neither by merge nor by merge_files; nothing is written."""
    good = expert_of(BASE, 3)
    out = (Path(path).parent if Path(path).parent.is_dir() else Path(path).parent.parent) / "out"
    calls: list[Callable[[], object]] = [
        lambda: fbl.merge("task_arithmetic", BASE, {"good": good, "bad": path}),
        lambda: fbl.merge("individual", path, {"good": good}).state_dict("good"),
        lambda: fbl.merge_files("ties_merging", BASE, {"good": good, "bad": path}, out),
    ]
    for call in calls:
        with pytest.raises(fbl.MergeError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 600
        for part in (Path(path).name[:100] if names is None else names, *parts):
            assert part in message, f"{part!r} is not in {message!r}"
    assert not out.exists()


def shards(folder: Path, changes: dict | None = None) -> Path:
    """A sharded model of two files, with changes to its index."""
    save(folder / "one.safetensors", {"a.weight": BASE["a.weight"]})
    save(folder / "two.safetensors", {name: BASE[name] for name in ("a.bias", "n")})
    places = {"a.weight": "one.safetensors", "a.bias": "two.safetensors", "n": "two.safetensors"}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {**places, **(changes or {})}}))
    return folder


# ---------------------------------------------------------------- no such file


@pytest.mark.parametrize("name", ["missing", "missing.safetensors", "x" * 300])
def test_missing(tmp_path, name):
    refuse(tmp_path / name)
    refuse(str(tmp_path / name))


def test_missing_says_so(tmp_path):
    refuse(tmp_path / "missing", "does not exist", ".safetensors file")
    (tmp_path / "file").touch()
    refuse(tmp_path / "file" / "below.safetensors", "cannot be read")


def test_empty_directory_and_other_formats(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    refuse(folder, "holds no .safetensors file", "convert")
    (folder / "pytorch_model.bin").write_bytes(b"")
    refuse(folder, "holds no .safetensors file", "convert")


# ---------------------------------------------------------------- not safetensors


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".safetensors"])
def test_a_pickle_is_not_opened(tmp_path, suffix):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "trapped",))

    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps({"a.weight": Trap()}))
    refuse(path, "cannot read", "safetensors")
    torch.save(BASE, path)
    refuse(path, "cannot read", "safetensors")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"words\n" * 9, b"\xff" * 99, b"\x02" + b"\x00" * 7 + b"{}"])
def test_not_safetensors(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    if content.endswith(b"{}"):  # a valid file of no tensors
        with pytest.raises(fbl.MergeError, match="lacks key 'a.weight'"):
            fbl.merge("task_arithmetic", BASE, {"bad": path})
    else:
        refuse(path, "cannot read", "fetch it again")


@pytest.mark.parametrize("kept", [1, 7, 8, 60, -1, -50])
def test_truncated(tmp_path, kept):
    path = save(tmp_path / "model.safetensors", BASE)
    path.write_bytes(path.read_bytes()[:kept])
    refuse(path, "cannot read", "incomplete")
    folder = shards(tmp_path / "sharded")
    (folder / "two.safetensors").write_bytes(path.read_bytes())
    refuse(folder, "two.safetensors", "cannot read", "incomplete")


def test_a_file_that_is_gone_or_cut_when_it_is_read(tmp_path):
    for content in (None, b"", b"\x00" * 200):
        path = save(tmp_path / "model.safetensors", BASE)
        merged = fbl.merge("individual", BASE, {"bad": path})
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(fbl.MergeError, match=r"cannot read .*model\.safetensors") as caught:
            merged.state_dict("bad")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.complex64], ids=str)
def test_dtypes_that_no_method_merges(tmp_path, dtype):
    refuse(save(tmp_path / "model.safetensors", BASE | {"scale": torch.zeros(3, dtype=dtype)}), "'scale'", "dtype", "convert")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_quantised_model(tmp_path, dtype):
    path = save(tmp_path / "model.safetensors", BASE | {"w": torch.zeros(3, dtype=dtype)})
    refuse(path, "'w'", "quantised", "load it in 16 or 32 bits first")


# ---------------------------------------------------------------- index


@pytest.mark.parametrize(
    "place",
    ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", "", ".", "./../one.safetensors", "..\\one.safetensors",
     "two.safetensors/"],
)
def test_index_that_leads_out_of_the_folder(tmp_path, place):
    save(tmp_path / "one.safetensors", BASE)
    refuse(shards(tmp_path / "model", {"a.weight": place}), INDEX, repr(place), "outside")


def test_index_with_a_missing_file(tmp_path):
    folder = shards(tmp_path / "model", {"a.weight": "ome.safetensors"})
    refuse(folder, INDEX, "'ome.safetensors'", "missing", "did you mean 'one.safetensors'?")
    for name in ("one", "two"):
        (folder / f"{name}.safetensors").unlink()
    refuse(folder, INDEX, "missing")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", '{"weight_map": 3}', '{"weight_map": []}', '{"metadata": {}}', '{"weight_map": {"a": 3}}',
     '{"weight_map": {"a": ["b"]}}', '{"weight_map": {"a": null}}', "[" * 100_000, b"\xff\xfe{}", b"\x00"],
)  # fmt: skip
def test_corrupt_index(tmp_path, content):
    folder = shards(tmp_path / "model")
    (folder / INDEX).write_bytes(content if isinstance(content, bytes) else content.encode())
    refuse(folder, "cannot read", INDEX)


def test_a_tensor_in_two_files(tmp_path):
    folder = tmp_path / "model"
    for number in (1, 2):
        save(folder / f"model-{number}-of-2.safetensors", BASE)
    refuse(folder, "model-1-of-2.safetensors", "model-2-of-2.safetensors", "both hold", "fetch both again")


def test_a_tensor_that_its_file_does_not_hold(tmp_path):
    refuse(shards(tmp_path / "model", {"b.weight": "two.safetensors"}), INDEX, "'b.weight'", "'two.safetensors'")


# ---------------------------------------------------------------- another model


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_another_model(tmp_path, kind):
    good = expert_of(BASE, 3)
    wrong = {
        "lacks key 'a.bias'": {"a.weight": BASE["a.weight"], "n": BASE["n"]},
        "has key 'b'": BASE | {"b": torch.zeros(3)},
        r"shape \(5, 6\), the pretrained model \(6, 5\)": BASE | {"a.weight": torch.zeros(5, 6)},
        r"dtype torch.float16, the pretrained model torch.float32": BASE | {"a.bias": torch.zeros(6).half()},
    }
    for number, (text, state) in enumerate(wrong.items()):
        path = save(tmp_path / f"{number}" / "model.safetensors", state)
        with pytest.raises(fbl.MergeError, match=f"expert 'bad'.*{text}") as caught:
            fbl.merge_files("ties_merging", BASE, {"good": good, "bad": path if kind == "file" else path.parent}, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
