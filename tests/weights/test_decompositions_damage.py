"""Damaged entries of the decomposition cache: computed again and replaced, never used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusionbench_lite.weights import decompositions
from fusionbench_lite.weights.decompositions import cached_in
from fusionbench_lite.weights.linalg import top_singular
from tests.support.decomposition_cases import count_decompositions, files, matrix, same


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    return count_decompositions(monkeypatch)


@pytest.fixture
def small(monkeypatch) -> None:
    """Matrices of every size are kept."""
    monkeypatch.setattr(decompositions, "SMALLEST", 1)


def entry(folder: Path, a: torch.Tensor, rank: int = 5) -> Path:
    with cached_in(folder):
        top_singular(a, rank, "a")
    (path,) = files(folder)
    return path


def check_replaced(path: Path, a: torch.Tensor, computed: list[str], caplog, rank: int = 5) -> None:
    """What lies at `path` is not used but replaced, with a warning."""
    plain = top_singular(a, rank, "a")
    caplog.clear()
    computed.clear()
    with cached_in(path.parent), caplog.at_level(logging.WARNING, logger="fusionbench_lite"):
        assert same(top_singular(a, rank, "a"), plain)
        assert computed == ["eigh"]
        assert path.name in caplog.text
        assert same(top_singular(a, rank, "a"), plain)
    assert computed == ["eigh"]
    assert files(path.parent) == [path]


def test_every_flipped_byte_and_every_length(tmp_path, small):
    a = matrix(shape=(3, 3))
    path = entry(tmp_path, a, 3)
    content = path.read_bytes()
    assert decompositions._read(path, {"weights": (3,), "vectors": (3, 3)}) is not None
    for place in range(len(content)):
        for mask in (1, 0x20, 0x80, 0xFF):
            path.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
            assert decompositions._read(path, {"weights": (3,), "vectors": (3, 3)}) is None, (place, mask)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert decompositions._read(path, {"weights": (3,), "vectors": (3, 3)}) is None, length


@pytest.mark.parametrize("content", [b"", b"words", b"\xff" * 200, "cut", "flipped"])
def test_a_damaged_file_is_replaced(tmp_path, small, computed, caplog, content):
    a = matrix()
    path = entry(tmp_path, a)
    whole = path.read_bytes()
    if content == "cut":
        content = whole[:-8]
    elif content == "flipped":
        content = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    path.write_bytes(content)
    check_replaced(path, a, computed, caplog)
    assert path.read_bytes() == whole


def test_the_sound_entry_of_another_matrix_is_not_used(tmp_path, small, computed, caplog):
    a, other = matrix(), matrix(1)
    path = entry(tmp_path / "a", a)
    path.write_bytes(entry(tmp_path / "other", other).read_bytes())
    check_replaced(path, a, computed, caplog)


@pytest.mark.parametrize("checksum", ["none", "zeros", "right"])
@pytest.mark.parametrize(
    "change", ["rows", "length", "dimensions", "names", "missing", "nan", "inf", "integers", "transposed", "nothing"]
)
def test_what_is_not_the_decomposition_is_not_used(tmp_path, small, computed, caplog, change, checksum):
    a = matrix(shape=(24, 30))
    path = entry(tmp_path, a)
    tensors = load_file(path)
    if change == "rows":
        tensors["vectors"] = tensors["vectors"][:-1]
    elif change == "length":
        tensors["weights"] = tensors["weights"][:5]
    elif change == "dimensions":
        tensors["vectors"] = tensors["vectors"][..., None]
    elif change == "names":
        tensors["other"] = tensors["weights"].clone()
    elif change == "missing":
        del tensors["weights"]
    elif change == "nan":
        tensors["vectors"][0, 0] = float("nan")
    elif change == "inf":
        tensors["weights"][0] = float("inf")
    elif change == "integers":
        tensors["vectors"] = tensors["vectors"].long()
    elif change == "transposed":
        tensors["vectors"] = tensors["vectors"].T
    elif checksum == "right":
        return
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    sums = {"none": None, "zeros": {"checksum": "0" * 64}, "right": {"checksum": decompositions._checksum(path, tensors)}}
    save_file(tensors, path, metadata=sums[checksum])
    check_replaced(path, a, computed, caplog)
