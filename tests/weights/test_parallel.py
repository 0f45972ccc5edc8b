"""Work on several threads: order, errors, limits, and the bits of one thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite.weights.parallel import each
from tests.conftest import ROOT
from tests.support.helpers import distance, experts_of, rng, same_bits

MARK: ContextVar[str] = ContextVar("mark", default="none")


@contextmanager
def limit(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_come_in_the_order_of_the_items(threads):
    with limit(threads):
        assert each(lambda number: number * number, range(100)) == [number * number for number in range(100)]
        assert each(str, iter("abc")) == ["a", "b", "c"]
        assert each(str, []) == []
        assert each(str, [5]) == ["5"]


def test_items_run_at_the_same_time_and_one_alone_in_the_caller():
    meeting = threading.Barrier(2, timeout=60)
    with limit(2):
        assert sorted(each(lambda _: meeting.wait(), range(2))) == [0, 1]
        assert each(lambda _: threading.current_thread(), [1]) == [threading.current_thread()]
    with limit(1):
        assert set(each(lambda _: threading.current_thread(), range(3))) == {threading.current_thread()}


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_reaches_the_caller_and_the_next_call_works(threads):
    def work(number: int) -> int:
        if number == 3:
            raise fbl.MergeError("the third")
        return number

    with limit(threads):
        for _ in range(3):
            with pytest.raises(fbl.MergeError, match="the third"):
                each(work, range(8))
            assert each(work, range(3)) == [0, 1, 2]


@pytest.mark.parametrize("threads", [2, 3])
def test_one_thread_of_arithmetic_each_and_the_limit_of_the_caller_stays(threads):
    with limit(threads):
        for _ in range(2):
            assert each(lambda _: torch.get_num_threads(), range(9)) == [1] * 9
            assert torch.get_num_threads() == threads
        # A call within a call has one thread, and does not wait for itself.
        assert each(lambda number: sum(each(lambda other: number * other, range(4))), range(9)) == [6 * n for n in range(9)]
        found: list[int] = []
        other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert found == [threads]


def test_the_context_of_the_caller_is_seen_and_not_changed():
    def work(number: int) -> str:
        seen = MARK.get()
        MARK.set(str(number))
        return seen

    token = MARK.set("caller")
    try:
        with limit(2):
            assert each(work, range(6)) == ["caller"] * 6
        assert MARK.get() == "caller"
    finally:
        MARK.reset(token)


@pytest.mark.parametrize(
    ("method", "given"),
    [("tsv_m", {}), ("task_arithmetic", {}), ("ties_merging", {}), ("tsv_c", {}), ("cart", {}), ("star", {}),
     ("breadcrumbs", {}), ("emr_merging", {}), pytest.param("iso_cts", {}, marks=pytest.mark.slow), ("knots_ta", {}),
     ("doge_ta", {"steps": 3, "matrices": "all_2d"})],
)  # fmt: skip
def test_the_bits_do_not_depend_on_the_number_of_threads(method, given):
    g = rng(0)
    shapes = {"visual.attn.a.weight": (300, 300), "visual.mlp.b.weight": (2000, 600), "bias": (300,)}
    if method not in ("task_arithmetic", "ties_merging", "emr_merging", "breadcrumbs"):
        del shapes["visual.mlp.b.weight"]
    base = {name: 0.05 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    experts = experts_of(base, 2, size=0.01)
    states = []
    for threads in (1, 2, 2):
        with limit(threads):
            states.append(fbl.merge(method, base, experts, **given).state_dict("task1"))
            assert torch.get_num_threads() == threads
    assert same_bits(states[1], states[2]), "two runs with two threads differ"
    if method in ("iso_cts", "knots_ta") or not products_are_split_alike():
        # Products of the caller's own are split by the BLAS: MKL's branch for any processor rounds them by the number of threads.
        assert all(distance(states[0][name], states[1][name]) <= 1e-6 for name in shapes), "one and two threads differ"
    else:
        assert same_bits(states[0], states[1]), "one and two threads differ"


def products_are_split_alike() -> bool:
    """Whether products of this test's sides have the same bits with one and two threads on these kernels."""
    g = rng(1)
    wide, square = torch.randn(300, 600, generator=g, dtype=torch.float64), torch.randn(300, 300, generator=g)
    products = []
    for threads in (1, 2):
        with limit(threads):
            products.append([wide @ wide.T, wide.T @ wide, square @ square, square.T @ square])
    return all(torch.equal(one, two) for one, two in zip(*products, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_threads_of_its_own():
    program = """
import os, signal, torch
from fusionbench_lite.weights.parallel import each
torch.set_num_threads(2)
assert each(lambda n: n + 1, range(4)) == [1, 2, 3, 4]
child = os.fork()
signal.alarm(50)
if child == 0:
    os._exit(7 if each(lambda n: n + 1, range(4)) == [1, 2, 3, 4] else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=True)
