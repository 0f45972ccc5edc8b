"""The decomposition cache: the bits of computing, shared between methods, never a damaged entry."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fusionbench_lite import registry
from fusionbench_lite.weights import decompositions
from fusionbench_lite.weights.decompositions import cached_in
from fusionbench_lite.weights.experts import Experts
from fusionbench_lite.weights.linalg import decompose, svd, top_singular
from tests.methods.test_files import full_disk
from tests.support.decomposition_cases import SHAPES, count_decompositions, files, matrix, merged, model, same
from tests.support.helpers import State, same_bits


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    return count_decompositions(monkeypatch)


@pytest.fixture
def small(monkeypatch) -> None:
    """Matrices of every size are kept."""
    monkeypatch.setattr(decompositions, "SMALLEST", 1)


# ---------------------------------------------------------------- the bits of computing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 7, 24])
def test_a_hit_has_the_bits_of_computing(tmp_path, small, computed, shape, rank, dtype):
    a = matrix(1, shape, dtype)
    plain, whole = top_singular(a, rank, "a"), svd(a, "a")
    with cached_in(tmp_path):
        assert same(top_singular(a, rank, "a"), plain)
        assert same(svd(a, "a"), whole)
        computed.clear()
        for _ in range(2):
            assert same(top_singular(a, rank, "a"), plain)
            assert same(svd(a, "a"), whole)
        # From an entry with more components than are asked for.
        top_singular(a, 24, "a")
        computed.clear()
        assert same(top_singular(a, rank, "a"), plain)
    assert computed == []
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("method", ["tsv_m", "tsv_c", "cart", "iso_c", "iso_cts", "star", "doge_ta"])
@pytest.mark.parametrize("shape", SHAPES)
def test_methods_give_the_bits_of_computing(tmp_path, small, method, shape):
    base, experts = model(shape)
    given = {"matrices": "all_2d", "steps": 5} if method == "doge_ta" else {}
    expected = merged(method, base, experts, **given)
    with cached_in(tmp_path):
        assert same_bits(merged(method, base, experts, **given), expected)
        assert files(tmp_path)
        assert same_bits(merged(method, base, experts, **given), expected)


def test_at_the_size_where_it_is_used(tmp_path, computed):
    base, experts = model((300, 260))
    expected = merged("tsv_m", base, experts)
    with cached_in(tmp_path):
        merged("tsv_c", base, experts)
        assert len(files(tmp_path)) == 3
        computed.clear()
        assert same_bits(merged("tsv_m", base, experts), expected)
    assert computed == ["eigh", "eigh"]  # the two whitenings, which depend on all tasks


def adarank(base: State, experts: dict[str, State]) -> object:
    entry = registry.get("adarank_ta")
    return entry.function(Experts(base, experts), entry.configure())


def test_methods_share_task_vectors_but_not_other_matrices(tmp_path, small, computed):
    base, experts = model()
    with cached_in(tmp_path):
        adarank(base, experts)
        assert computed == ["eigh"] * 3
        computed.clear()
        merged("tsv_c", base, experts)
        assert computed == []
        merged("tsv_m", base, experts)
        assert computed == ["eigh"] * 2  # its whitenings
        computed.clear()
        merged("cart", base, experts)  # θ_t - θ̄ are others
        assert computed == ["eigh"] * 3
        computed.clear()
        merged("tsv_c", base, {"alone": experts["task1"]}, rank_ratio=0.5)  # by content, not by task
        assert computed == []


def test_more_components_than_are_there_are_computed_and_kept(tmp_path, small, computed):
    base, experts = model()
    with cached_in(tmp_path):
        merged("tsv_c", base, experts, rank_ratio=0.2)
        size = sum(path.stat().st_size for path in files(tmp_path))
        computed.clear()
        expected = adarank(base, experts)
        assert computed == ["eigh"] * 3
        computed.clear()
        adarank(base, experts)
        merged("tsv_c", base, experts, rank_ratio=0.2)
        assert computed == []
    assert len(files(tmp_path)) == 3
    assert sum(path.stat().st_size for path in files(tmp_path)) > size
    assert expected is not None


# ---------------------------------------------------------------- folders, processes, threads


def test_a_folder_that_cannot_be_written_only_warns(tmp_path, small, caplog):
    base, experts = model()
    expected = merged("tsv_c", base, experts)
    (tmp_path / "file").touch()
    with cached_in(tmp_path / "file" / "cache"), caplog.at_level(logging.WARNING, logger="fusionbench_lite"):
        assert same_bits(merged("tsv_c", base, experts), expected)
    assert "could not be kept" in caplog.text
    assert "\n" not in caplog.records[0].getMessage()
    assert [path.name for path in files(tmp_path)] == ["file"]


def test_a_full_disk_only_warns(tmp_path, small, caplog):
    base, experts = model()
    expected = merged("tsv_c", base, experts)
    with full_disk(500), cached_in(tmp_path), caplog.at_level(logging.WARNING, logger="fusionbench_lite"):
        assert same_bits(merged("tsv_c", base, experts), expected)
    assert "could not be kept" in caplog.text
    assert files(tmp_path) == []


def test_small_matrices_are_not_kept(tmp_path, monkeypatch):
    base, experts = model((40, 24))
    for smallest, count in ((256, 0), (25, 0), (24, 3)):
        monkeypatch.setattr(decompositions, "SMALLEST", smallest)
        with cached_in(tmp_path):
            merged("tsv_c", base, experts)
        assert len(files(tmp_path)) == count


def test_the_block_ends_and_nests(tmp_path, small):
    a = matrix()
    with pytest.raises(KeyError), cached_in(tmp_path / "outer"):
        with cached_in(tmp_path / "inner"):
            top_singular(a, 3, "a")
        with cached_in(None):
            top_singular(a, 3, "a")
        assert not (tmp_path / "outer").exists()
        decompose(a, "a")
        raise KeyError
    top_singular(matrix(1), 3, "a")
    assert [len(files(tmp_path / name)) for name in ("outer", "inner")] == [1, 1]
    for path in (*files(tmp_path / "outer"), *files(tmp_path / "inner")):
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == {"weights", "vectors"}


def _work(folder: Path, threads: int, connection) -> None:
    torch.set_num_threads(threads)
    decompositions.SMALLEST = 1
    base, experts = model()
    with cached_in(folder):
        for _ in range(5):
            result = merged("tsv_c", base, experts)
            for path in files(folder):
                path.unlink(missing_ok=True)
    connection.send({name: tensor.numpy() for name, tensor in result.items()})


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_and_their_threads(tmp_path, threads):
    base, experts = model()
    expected = merged("tsv_c", base, experts)
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    workers = [context.Process(target=_work, args=(tmp_path, threads, sender)) for _, sender in pipes]
    for worker in workers:
        worker.start()
    for (receiver, _), worker in zip(pipes, workers, strict=True):
        assert receiver.poll(120)
        found = {name: torch.from_numpy(values) for name, values in receiver.recv().items()}
        assert same_bits(found, expected)
        worker.join(60)
        assert worker.exitcode == 0
    assert [path for path in files(tmp_path) if path.suffix != ".safetensors"] == []


def test_threads_see_the_folder(tmp_path, small):
    base, experts = model()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with cached_in(tmp_path):
            result = merged("tsv_m", base, experts)
    finally:
        torch.set_num_threads(threads)
    assert len(files(tmp_path)) == 3
    assert same_bits(result, merged("tsv_m", base, experts))
