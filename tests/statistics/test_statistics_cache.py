"""The cache of statistics: computed once, verified, whole or not there, one process at a time."""

from __future__ import annotations

import multiprocessing
import time

import pytest
import torch

from fusionbench_lite.errors import InputError
from fusionbench_lite.weights.tensor_cache import cached

KEY = {"task": "signs", "examples": 256}


def _tensors() -> dict[str, torch.Tensor]:
    shared = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    return {
        "a": shared, "tied": shared, "row": shared[1], "turned": shared.T, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4),
        "half": torch.ones(3, dtype=torch.bfloat16), "number": torch.tensor([1, 2]), "flag": torch.tensor([True, False]),
        "learned": torch.ones(2, requires_grad=True),
    }


def _refuse() -> dict[str, torch.Tensor]:
    raise AssertionError("computed again")


def _equal(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert not found[name].requires_grad
        assert torch.equal(found[name], tensor.detach())


def _entry(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def test_an_entry_is_computed_once(tmp_path):
    _equal(cached(tmp_path, KEY, _tensors), _tensors())
    _equal(cached(tmp_path, dict(reversed(KEY.items())), _refuse), _tensors())
    assert len(_entry(tmp_path).stem) == 64
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".lock"}


def test_another_key_is_another_entry(tmp_path):
    cached(tmp_path, KEY, _tensors)
    other = cached(tmp_path, {**KEY, "examples": 128}, lambda: {"b": torch.zeros(1)})
    _equal(other, {"b": torch.zeros(1)})
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_what_is_handed_out_is_not_the_file(tmp_path):
    cached(tmp_path, KEY, _tensors)["a"].zero_()
    found = cached(tmp_path, KEY, _refuse)
    found["a"].zero_()
    del found
    _equal(cached(tmp_path, KEY, _refuse), _tensors())


@pytest.mark.parametrize("part", ["all", "tail", "half", "nothing", "value", "key", "checksum", "name", "length"])
def test_a_damaged_entry_is_computed_again(tmp_path, part, caplog):
    cached(tmp_path, KEY, _tensors)
    path = _entry(tmp_path)
    sound = path.read_bytes()
    start = sound.index(b'"sha256":"') + len(b'"sha256":"')
    damaged = {
        "all": b"no safetensors file", "tail": sound[:-1], "half": sound[: len(sound) // 2], "nothing": b"",
        "value": sound[:-1] + bytes([sound[-1] ^ 1]), "key": sound.replace(b"signs", b"sighs"),
        "checksum": sound[:start] + (b"0" if sound[start : start + 1] != b"0" else b"1") + sound[start + 1 :],
        "name": sound.replace(b'"tied"', b'"lied"'), "length": b"\xff" * 8 + sound[8:],
    }[part]
    path.write_bytes(damaged)
    _equal(cached(tmp_path, KEY, _tensors), _tensors())
    assert "is damaged: computing it again" in caplog.text
    _equal(cached(tmp_path, KEY, _refuse), _tensors())


def test_every_flipped_bit_is_noticed(tmp_path):
    """Flip one bit in each byte of an entry: what comes back is what was stored, read or computed again."""
    values = {"a": torch.tensor([1.0, 2.0])}
    cached(tmp_path, KEY, lambda: values)
    path = _entry(tmp_path)
    sound = path.read_bytes()
    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 4]) + sound[position + 1 :])
        _equal(cached(tmp_path, KEY, lambda: values), values)


def test_an_error_leaves_no_entry(tmp_path):
    with pytest.raises(AssertionError):
        cached(tmp_path, KEY, _refuse)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    _equal(cached(tmp_path, KEY, _tensors), _tensors())


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    from safetensors import SafetensorError, torch

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(torch, "save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        cached(tmp_path, KEY, _tensors)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        cached(tmp_path / "file" / "statistics", KEY, _tensors)


def _slow(folder, log):
    def compute():
        with log.open("a") as file:
            file.write("computed\n")
        time.sleep(1.0)
        return {"a": torch.ones(2)}

    assert torch.equal(cached(folder, KEY, compute)["a"], torch.ones(2))


def test_of_two_processes_one_computes(tmp_path):
    context, log = multiprocessing.get_context("spawn"), tmp_path / "log"
    processes = [context.Process(target=_slow, args=(tmp_path / "cache", log)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "computed\n"
